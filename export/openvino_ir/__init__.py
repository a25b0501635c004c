"""Export to an OpenVINO model; needs the package openvino."""
