"""Lightning modules built from nn layers and functional activations.

classifier.py what the classifiers share · mlp.py, convnet.py, rnn.py, transformer.py the models ·
lessons.py three tiny ones whose gradients can be checked by hand · checks.py checks of their arguments.
"""

from gradlab.models.convnet import ConvNet
from gradlab.models.lessons import ModuleVsFunctional, ScalarLine, TwoByTwo
from gradlab.models.mlp import MLP
from gradlab.models.rnn import RNN
from gradlab.models.transformer import Transformer

__all__ = ["MLP", "RNN", "ConvNet", "ModuleVsFunctional", "ScalarLine", "Transformer", "TwoByTwo"]
