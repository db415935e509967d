"""The TensorBoard event format, written and read without torch or TensorFlow."""
