"""Captured steps: one launch in place of hundreds.

A shape's first step runs kernel by kernel, which loads them; while the device works on it, the host captures
the same kernels. From then on the shape is one launch. All graphs share one pool of memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from octavo.runner.shapes import StepShape

logger = logging.getLogger("octavo")


def tells_handles() -> bool:
    """Whether this torch gives away the handles of its graphs; else only Python can launch them."""
    return hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph_exec")


class StepGraphs:
    """The graphs of one runner. `compute` runs a shape's kernels on the current stream, always the same;
    `captured` is told the handle of each shape's graph, a cudaGraphExec_t that lives as long as this, where
    torch tells it.

    The first shape to run should be the one that needs the most memory: it sizes the pool, which later graphs
    cut into pieces, where graphs of growing need would each add to it.
    """

    def __init__(
        self, compute: Callable[[StepShape], None], captured: Callable[[StepShape, int], None]
    ) -> None:
        self._compute, self._captured = compute, captured
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        cuda: Any = torch.cuda
        self._stream = cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._failed = False
        self.seconds = 0.0  # spent on capturing

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, shape: StepShape) -> None:
        """Run a step of a shape whose columns are on the device."""
        graph = self._graphs.get(shape)
        if graph is not None:
            graph.replay()
            return
        self._compute(shape)
        if shape.graphed and not self._failed:
            self._capture(shape)

    def _capture(self, shape: StepShape) -> None:
        """Record a shape. Where it fails, as for want of memory, steps go on kernel by kernel."""
        start = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    self._compute(shape)
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one
            self._failed = True
            logger.warning("steps run kernel by kernel from now on: capturing %s failed: %s", shape, error)
            return
        self._graphs[shape] = graph
        if tells_handles():
            self._captured(shape, graph.raw_cuda_graph_exec())
        self.seconds += time.perf_counter() - start
        logger.debug("captured %s (%d graphs, %.2f s)", shape, len(self._graphs), self.seconds)
