use vidgen_core::memory::MemoryQueue;

vidgen_core::queue_conformance!(memory, |clock| async move { MemoryQueue::with_clock(clock) });
