"""Load on a running Space: clients that ask one after the other, as fast as they are answered.

    python space/app.py &
    python -m tests.space.load http://127.0.0.1:7860 --clients 20 --seconds 60

Every answer is compared with the one the same question and beta got when asked alone. A question that the Space
refuses because it is busy (503, with the seconds to wait) is counted apart and asked again after three seconds. Exit
status 1 where an answer was lost, or another one. Prints one line of JSON; `first_answer_s` is the first that a fresh
Space gives, and the quantiles are of the answers.
"""

import argparse
import json
import sys
import threading
import time

from gradio_client import Client, handle_file
from gradio_client.utils import QueueError

BETAS = (0.0, 0.2, 0.5, 1.0)


def run(url: str, clients: int, seconds: float, questions: int = 6) -> dict:
    """{"first_answer_s", "answers", "lost", "different", "refused", "median_s", "p95_s", ...} of the run."""
    first = Client(url, verbose=False, httpx_kwargs={"timeout": 120})
    asked = []
    for seed in range(questions):
        picture, question, *_ = first.predict(seed=seed, api_name="/new_scene")
        asked += [{"picture": handle_file(picture), "question": question, "beta": beta} for beta in BETAS]
    start = time.monotonic()
    first.predict(**asked[0], api_name="/ask")
    first_answer = time.monotonic() - start
    alone = [first.predict(**request, api_name="/ask") for request in asked]
    # the page's description is the same for all; each has a session of its own
    connected = [Client(url, verbose=False, httpx_kwargs={"timeout": 120}) for _ in range(clients)]
    waits, refusals, errors, different = [], [], [], []
    stop = time.monotonic() + seconds

    def visitor(number: int, client: Client):
        turn = number
        while time.monotonic() < stop:
            index, start = turn % len(asked), time.monotonic()
            try:
                if client.predict(**asked[index], api_name="/ask") != alone[index]:
                    different.append(asked[index])
                waits.append(time.monotonic() - start)
                turn += 1
            except QueueError:  # what the client makes of 503
                refusals.append(time.monotonic() - start)
                time.sleep(3)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                turn += 1

    threads = [threading.Thread(target=visitor, args=pair) for pair in enumerate(connected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits.sort()
    refusals.sort()
    return {
        "first_answer_s": round(first_answer, 2),
        "clients": clients,
        "seconds": seconds,
        "answers": len(waits),
        "different_answers_alone": len({answer[:2] for answer in alone}),
        "lost": len(errors),
        "different": len(different),
        "refused": len(refusals),
        "median_s": round(waits[len(waits) // 2], 2),
        "p95_s": round(waits[len(waits) * 95 // 100], 2),
        "slowest_s": round(waits[-1], 2),
        "slowest_refusal_s": round(refusals[-1], 2) if refusals else None,
        "errors": errors[:3],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    result = run(args.url, args.clients, args.seconds)
    print(json.dumps(result))
    return int(bool(result["lost"] or result["different"]))


if __name__ == "__main__":
    sys.exit(main())
