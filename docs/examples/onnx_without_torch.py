"""Score slices with a model that `aeflow export RUN --to onnx -o FOLDER` wrote; numpy and ONNX Runtime are enough.

    python onnx_without_torch.py FOLDER/model.onnx slices.npy [numbers.npy]

slices.npy holds what the model's JSON file calls image, (N, C, H, W) in [0, 1]: of a volume all slices of a plane that
are scored, in their order; numbers.npy their numbers in the volume, (N,), where some between them are left out.
Research use only. Not a medical device.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

model, slices = Path(sys.argv[1]), np.load(sys.argv[2]).astype(np.float32)
if not (abs(slices - 0.5) < 0.5001).all():  # NaN is not either; resizing rounds
    sys.exit("Expected slices in [0, 1], see preprocessing in the model's JSON file.")
about = json.loads(next(path for path in model.parent.glob("*.json") if model.stem.startswith(path.stem)).read_text())
if "several_planes" in about:
    sys.exit("This model has several planes: " + about["several_planes"])
inputs, numbers = {"image": slices}, np.arange(len(slices))
if "position" in about["inputs"]:  # 0 for the first slice, 1 for the last, 0.5 for the only one
    numbers = np.load(sys.argv[3]) if len(sys.argv) > 3 else numbers
    position = (numbers - numbers[0]) / (numbers[-1] - numbers[0]) if len(numbers) > 1 else np.array([0.5])
    inputs["position"] = position.astype(np.float32)

session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))

for score in outputs["case_score"]:
    verdict = "abnormal" if score > about["thresholds"]["case_threshold"] else "normal"
    print(f"case score {score:.4f}: {verdict}")
mask = outputs["anomaly_map"] > about["thresholds"]["map_threshold"]
print(f"most anomalous slice: {numbers[outputs['slice_scores'].argmax()]}; pixels above the threshold: {mask.sum()}")
