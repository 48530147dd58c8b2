"""The model as an ONNX graph; `export.onnx_file` writes and reads the file."""
