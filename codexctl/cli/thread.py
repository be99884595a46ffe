"""`codexctl thread`: threads of the official Codex on paired hosts."""

from __future__ import annotations

from codexctl.cli.lazy import LazyGroup

COMMANDS = {
    "start": ("codexctl.cli.thread_start:start", "Start a thread on a host"),
    "list": ("codexctl.cli.thread_list:list_command", "List the threads of all hosts, or of one"),
    "show": ("codexctl.cli.thread_list:show", "Show a thread and what was said in it"),
    "watch": ("codexctl.cli.thread_watch:watch", "Follow a thread as it goes on"),
    "send": ("codexctl.cli.thread_send:send", "Say something to a thread, also while it is away"),
    "steer": ("codexctl.cli.thread_send:steer", "Say something to the turn that runs now"),
    "interrupt": ("codexctl.cli.thread_send:interrupt", "Stop the turn that runs"),
    "resume": ("codexctl.cli.thread_manage:resume", "Load a thread again, with modes of its own"),
    "fork": ("codexctl.cli.thread_manage:fork", "Begin a new thread with all of this one's past"),
    "rename": ("codexctl.cli.thread_manage:rename", "Give a thread a name"),
    "goal": ("codexctl.cli.thread_manage:goal", "Show, set or clear what a thread works towards"),
    "handoff": ("codexctl.cli.thread_handoff:handoff", "Move a thread, with its tree, elsewhere"),
    "archive": ("codexctl.cli.thread_manage:archive", "Put a thread away, or take it back"),
    "diff": ("codexctl.cli.thread_review:diff", "Show what a thread has changed; apply it here"),
    "review": ("codexctl.cli.thread_review:review", "Have the agent review changes"),
    "approve": ("codexctl.cli.thread_decide:approve", "Allow what a thread asks for"),
    "deny": ("codexctl.cli.thread_decide:deny", "Refuse what a thread asks for"),
    "answer": ("codexctl.cli.thread_decide:answer", "Answer a thread's questions"),
    "export": ("codexctl.cli.thread_export:export", "Save a thread's conversation as a file"),
    "outbox": ("codexctl.cli.thread_outbox:outbox", "Messages that wait for hosts that are away"),
}

thread = LazyGroup(
    "thread",
    table=COMMANDS,
    help="""Threads of the official Codex on paired hosts: start, watch, steer, review.

    A THREAD is the beginning of its id, or its name; HOST:THREAD where several hosts have one
    that is called so. It is also the link in a notification.""",
)
