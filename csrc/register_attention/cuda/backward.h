// The backward kernel on tensor cores: a block's walk over its tiles. What it does with one is in backward_block.h.
#pragma once

#include "register_attention/cuda/backward_block.h"

namespace ocl::register_attention {

template <class T, int width, int key_blocks>
OCL_KERNEL void OCL_LAUNCH_BOUNDS(32 * key_blocks / backward_tile(width, key_blocks).blocks_per_warp,
                                  backward_tile(width, key_blocks).resident)
    backward_kernel(const RegisterAttentionBackward work, const BackwardShape shape) {
  using Block = BackwardBlock<T, width, key_blocks>;
  OCL_DYNAMIC_SHARED(shared);
  const RegisterAttention& in = work.in;
  const typename Block::Memory memory(shared, shape.stages);
  const typename Block::Wanted wanted(work, shape);
  const Run run = run_of_block(static_cast<int>(in.H), shape.parts, in.B * shape.chunks);
  Item item = first_of_chunk(run.first, shape);
  const Item end = first_of_chunk(run.last, shape);
  int left = (end.image - item.image) * shape.tiles_per_image + end.tile - item.tile;  // its parity chooses the buffers

  const auto load_tile = [&](const Item& which, int number) {
    const int offset = (number & (shape.stages - 1)) * Block::tile_size;
    Block::load_tile(memory.queries + offset, memory.grads + offset, work, which, run.head);
  };
  load_registers<T, width>(memory.keys, memory.values, in, run.head, Block::keys, Block::threads);
  load_tile(item, left);
  float logsumexp = Block::load_logsumexp(work, item, run.head);
  typename Block::Sums sums;
  uint32_t dead = 0;
  bool new_image = true;
  for (; left > 0; --left) {
    if (new_image) {
      simt::sync_threads();  // nobody reads the slots of the last image any more
      load_slots<T, width>(memory.keys, memory.values, in, item.image, run.head, Block::threads);
      dead = Block::dead_keys(in, item.image);
    }
    float* const logsumexps = memory.logsumexps + left % 2 * Block::rows;
    if (simt::thread_index() < Block::rows) logsumexps[simt::thread_index()] = logsumexp;
    simt::copy_async_commit();
    simt::copy_async_wait<0>();
    simt::sync_threads();  // the tile has landed, and nobody reads the last one any more

    const Item next = item.next(shape.tiles_per_image);
    if (left > 1 && shape.stages == 2) load_tile(next, left - 1);
    if (left > 1) logsumexp = Block::load_logsumexp(work, next, run.head);
    const int offset = (left & (shape.stages - 1)) * Block::tile_size;
    Block::compute(sums, work, shape, memory, wanted, item, run.head, memory.queries + offset, memory.grads + offset, logsumexps,
                   dead);
    if (left > 1 && shape.stages == 1) {
      simt::sync_threads();  // nobody reads this tile any more
      load_tile(next, left - 1);
    }
    const bool last_of_chunk = next.tile % shape.tiles_per_chunk == 0;  // also after the last tile of an image
    if (last_of_chunk) Block::flush_slots(sums, in, shape, item, run.head);
    item = next;
    new_image = item.tile == 0;
  }
  Block::flush_registers(sums, in, shape, static_cast<int64_t>(run.head) * shape.parts + run.part);
}

}  // namespace ocl::register_attention
