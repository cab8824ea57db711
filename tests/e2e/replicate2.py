"""Replicate's Python client 2.x, unchanged: `python replicate2.py URL`, with it on the path."""

import sys

from replicate import Replicate, UnprocessableEntityError

MODEL = "black-forest-labs/flux-schnell"
SMALL = {"prompt": "a red circle", "megapixels": "0.25", "num_inference_steps": 1}

client = Replicate(bearer_token="r8_unused", base_url=f"{sys.argv[1]}/v1")
outputs = client.run(MODEL, input=SMALL | {"num_outputs": 2})
assert [output.read()[8:12] for output in outputs] == [b"WEBP"] * 2

made = client.predictions.create(version=MODEL, input=SMALL)
assert made.status == "starting"
made = client.predictions.wait(prediction_id=made.id)
assert made.status == "succeeded"
assert client.predictions.get(prediction_id=made.id).urls.get.endswith(f"/v1/predictions/{made.id}")
assert client.predictions.cancel(prediction_id=made.id).status == "succeeded"
assert client.predictions.list().results[0].id == made.id

try:
    client.run(MODEL, input=SMALL | {"num_outputs": 9})
except UnprocessableEntityError as error:
    refusal = str(error)
assert "num_outputs" in refusal

model = client.models.get(model_owner="black-forest-labs", model_name="flux-schnell")
assert model.latest_version
assert (client.webhooks.default.secret.get().key or "").startswith("whsec_")
sys.stdout.write("ok\n")
