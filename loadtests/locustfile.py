"""For people who have Locust: `locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`.

Users who wait for their picture before they ask for the next one: a closed loop, which finds out how many
such users a server keeps happy. `python -m loadtests.generator` is the open loop.
"""

import random

from locust import HttpUser, between, task

from loadtests.traffic import PROMPTS

SIDES = (256, 256, 384, 512)


class Browser(HttpUser):
    """Somebody who types a prompt, looks at the picture and types the next one."""

    wait_time = between(1, 5)

    @task
    def generate(self) -> None:
        side = random.choice(SIDES)
        with self.client.post(
            "/v1/generate",
            json={"prompt": random.choice(PROMPTS), "width": side, "height": side},
            headers={"Accept": "image/*"},
            name=f"{side}x{side}",
            catch_response=True,
        ) as answer:
            if answer.status_code == 429:
                answer.failure(f"overloaded, retry after {answer.headers['Retry-After']} s")
