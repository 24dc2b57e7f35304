"""What decoders share: model files, letterbox, raw outputs, NMS, detections, drawing."""
