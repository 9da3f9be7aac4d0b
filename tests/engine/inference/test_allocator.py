from aeflow_monai.engine.inference.allocator import keep_freed_memory


def test_the_allocator_can_be_tuned_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()
