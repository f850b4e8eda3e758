"""The waiting trainer: takes jobs from the queue one at a time, each as a process of its own.

It holds the queue's `.server.lock` while it lives. A job's process inherits the lock `.job.lock`, which therefore tells
whether a job still runs even after this program was killed: the next one waits for that process.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.common.problems import Problem, Problems
from trainer.exchange.files import take_lock
from trainer.exchange.job_queue import JOB_LOCK, SERVER_LOCK, Job, JobQueue
from trainer.exchange.status import FAILED, RESUME, RUNNING, WAITING, Status
from trainer.serving import comfyui
from trainer.serving.command import arguments_of
from trainer.serving.outcome import Left, judge
from trainer.serving.planner import Planner

POLL = 1.0  # seconds between two looks at the queue
AGAIN = 30.0  # seconds until something that the disk refused is tried again
FREEING = 2.0  # seconds that ComfyUI gets to free its memory
SETTLED = 2.0  # seconds after which a file that is being copied into the queue counts as complete
LONGEST_WAIT = 1800.0  # seconds that a job waits for ComfyUI to finish what it generates


@dataclass
class Running:
    """The job that is running.

    process: None if a trainer that was killed started it. asked: whether it was asked to stop.
    """

    job: str
    pid: int | None
    process: subprocess.Popen[bytes] | None = None
    asked: bool = False


class Server:
    """Runs the jobs of a queue until it is told to stop.

    command: the words that run a job. comfyui_url: the ComfyUI that shares the GPU, None for none.
    say: shows a line to the user. has_gpu: whether a job waits while ComfyUI generates. planner: answers the page's
    questions meanwhile; None leaves them unanswered.
    """

    def __init__(
        self,
        queue: JobQueue,
        command: Callable[[Job], Sequence[str]],
        say: Callable[[str], object],
        comfyui_url: str | None = None,
        has_gpu: bool = False,
        planner: Planner | None = None,
    ):
        self.queue, self.command, self.say, self.comfyui_url, self.has_gpu = queue, command, say, comfyui_url, has_gpu
        self.planner = planner
        self.running: Running | None = None
        self.stop = threading.Event()
        self.since = time.time()
        self.gpu = self.said = ""
        self.waits_since: float | None = None
        self.refused_files: set[str] = set()

    def serve(self) -> None:
        """Take jobs until `stop` is set, then let the running one save. Raises `Problems` if another trainer serves."""
        self.queue.folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(self.queue.folder / SERVER_LOCK)
        if lock is None:
            hint = "use that one, or stop it first"
            raise Problems([Problem(str(self.queue.folder), "another trainer takes jobs from this queue", hint)])
        try:
            while not (self.stop.is_set() and self.running is None):
                pause = self._safe_tick()
                if self.planner and not self.stop.is_set():
                    self.planner.tick(gpu_in_use=self.has_gpu and self.running is not None)
                time.sleep(pause) if self.stop.is_set() else self.stop.wait(pause)
        finally:
            if self.planner:
                self.planner.stop()
            os.close(lock)

    def _safe_tick(self) -> float:
        """Run one `tick`; returns the seconds until the next. A failed write is retried then."""
        try:
            self.tick()
            return POLL
        except LookupError:  # a person has moved a job's files away
            if self.running:
                self._report(f"{self.running.job}: its file is gone; its process may finish.")
            self._forget_ended()
            return POLL
        except OSError as error:
            self._report(f"The queue cannot be written: {error.strerror or error}. Trying again in {AGAIN:.0f} s.")
            if not self.stop.is_set():
                return AGAIN
            self._forget_ended()  # the next trainer finds out what became of it
            return POLL

    def _forget_ended(self) -> None:
        """Stop watching a process that has ended even though its outcome could not be recorded."""
        process = self.running.process if self.running else None
        if process is not None and process.poll() is not None:
            self.running = None

    def tick(self) -> None:
        """Look at the running job and at the queue once. Raises OSError if a file cannot be written."""
        if self.running:
            self._watch(self.running)
        if self.running is None and not self.stop.is_set():
            self._take_up()
            self._check_new()
            if self.running is None:
                self._start_next()

    def _take_up(self) -> None:
        """Take over a job that a killed trainer left running: watch its process, or put the job at the front again."""
        left = [job for job in self.queue.jobs() if job.status.state == RUNNING]
        if not left:
            return
        lock = take_lock(self.queue.folder / JOB_LOCK)
        if lock is None:
            self.running = Running(left[0].id, left[0].status.pid, asked=False)
            self._report(f"{left[0].id}: is still running; the trainer that started it has ended.")
            return
        os.close(lock)
        for job in left:
            self._end(job, None)

    def _check_new(self) -> None:
        """Check the settings of waiting jobs, so that a mistake is reported before the job's turn comes."""
        for name in sorted({*self.queue.left_out()} - self.refused_files):
            self.refused_files.add(name)
            rule = "a job's name has letters, digits, spaces, - and _ only, and is not config or log"
            self.say(f"{self.queue.folder / name}: not taken; {rule}")
        for job in self.queue.jobs():
            # a date in the future would be newer than any failure
            if job.status.state == FAILED and (job.status.ended or 0) < job.modified <= time.time():
                self.say(f"{job.id}: its file has changed; it is tried again")
                job = self.queue.act(job.id, RESUME)
            if _is_new(job) and self._is_valid(job):
                self.queue.update(job.id, lambda status: replace(status, checked=True))

    def _is_valid(self, job: Job) -> bool:
        try:
            arguments_of(job, self.queue.path(job.id, ".toml"))
            return True
        except Problems as found:
            held = tuple(each.as_dict() for each in found.problems)
            now = time.time()
            self._log(job.id, f"{found}\n")
            change = {"state": FAILED, "problems": held, "message": "Its settings are not valid.", "ended": now}
            self.queue.update(job.id, lambda status: replace(status, **change))
            self.say(f"{job.id}: not started\n{found}")
            return False

    def _start_next(self) -> None:
        job = next((job for job in self.queue.jobs() if job.status.state == WAITING and job.status.checked), None)
        if job is None or self.queue.paused:
            self._report("The queue is paused." if job else "Waiting for jobs.")
            return
        if not self._is_valid(job) or self._comfyui_generates(job):
            return
        lock = take_lock(self.queue.folder / JOB_LOCK)
        if lock is None:
            self._report(f"{job.id}: waits until a process of the job before has ended.")
            return
        try:
            self._start(job, lock)
        finally:
            os.close(lock)  # the job's process has its own

    def _comfyui_generates(self, job: Job) -> bool:
        """Whether the job has to wait for an image that ComfyUI generates on the same GPU."""
        if not self.comfyui_url or not self.has_gpu or not comfyui.is_generating(self.comfyui_url):
            self.waits_since = None
            return False
        self.waits_since = self.waits_since or time.monotonic()
        if time.monotonic() - self.waits_since > LONGEST_WAIT:
            return False
        self._report(f"{job.id}: waits for the images that ComfyUI generates.")
        return True

    def _start(self, job: Job, lock: int) -> None:
        if self.comfyui_url:
            self.say(comfyui.ask_to_free(self.comfyui_url))
            if self.has_gpu:
                self.stop.wait(FREEING)
        self.gpu = comfyui.gpu_memory()
        if self.gpu:
            self.say(self.gpu)
        started = time.time()

        def begin(status: Status) -> Status:
            if status.state != WAITING:  # somebody paused or cancelled it while ComfyUI was asked
                return status
            first = {"state": RUNNING, "asked": None, "attempts": status.attempts + 1, "started": started}
            return replace(status, **first, ended=None, exit_code=None, pid=None, message="", problems=())

        # the status first: a job that is started without it would be started again
        if self.queue.update(job.id, begin).state != RUNNING:
            return
        try:
            with self.queue.path(job.id, ".log").open("ab") as log:
                process = subprocess.Popen(
                    self.command(job),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C comes here alone and is passed on once
                )
        except OSError as error:
            what = f"Its process could not be started: {error.strerror}."
            self.queue.update(job.id, lambda status: replace(status, state=FAILED, message=what, ended=time.time()))
            self.say(f"{job.id}: {what}")
            return
        self.running = Running(job.id, process.pid, process)
        self._report(f"{job.id}: started; its messages are in {self.queue.path(job.id, '.log')}")
        with contextlib.suppress(OSError):  # only for a trainer that takes over
            self.queue.update(job.id, lambda status: replace(status, pid=process.pid))

    def _watch(self, running: Running) -> None:
        """Pass a request to stop on to the job's process; record the outcome once it has ended."""
        if running.process is None:
            lock = take_lock(self.queue.folder / JOB_LOCK)
            if lock is not None:
                os.close(lock)
                self._end(self.queue.job(running.job), None)
                return
        elif running.process.poll() is not None:
            self._end(self.queue.job(running.job), running.process.returncode)
            return
        if not running.asked and (self.stop.is_set() or self.queue.job(running.job).status.asked):
            running.asked = True
            self.ask_to_stop()

    def ask_to_stop(self) -> None:
        """Ask the running job to save and stop; a second time, to end without saving."""
        running = self.running
        if running is None or (running.process is not None and running.process.poll() is not None):
            return
        if running.pid is None:  # the trainer that started it was killed before it could write that down
            self._report(f"{running.job}: cannot be asked to stop, since its process is not known; it may finish.")
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGTERM)
        self._report(f"{running.job}: was asked to save and stop.")

    def _end(self, job: Job, exit_code: int | None) -> None:
        """Record the outcome of a job. exit_code: of its process, negative for a signal; None if it is unknown."""
        tail = self.queue.log(job.id, -4096, 4096)[0].decode("utf-8", "replace")
        left = Left.by(job, self.queue.path(job.id, ".result.json"))
        change = judge(job, exit_code, self.stop.is_set(), tail, left)
        status = self.queue.update(job.id, change)
        if status.state == WAITING:
            self.queue.put_first(job.id)
        self.running = None
        self._report(f"{job.id}: {status.state}. {status.message}".strip())

    def _report(self, message: str) -> None:
        """Show a line, unless it was the last one too, and store it for the page."""
        if message != self.said:
            self.said = message
            self.say(message)
            with contextlib.suppress(OSError):
                self.queue.say(self.since, message, self.gpu)

    def _log(self, job: str, text: str) -> None:
        with self.queue.path(job, ".log").open("ab") as log:
            log.write(text.encode())


def _is_new(job: Job) -> bool:
    """Whether a job's settings are to be checked: not while its file may still be growing."""
    is_written = time.time() - job.modified > SETTLED or job.status.submitted != job.modified
    return job.status.state == WAITING and not job.status.checked and is_written
