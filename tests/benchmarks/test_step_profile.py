"""The profile of a step counts all of its time once, under the right kind of work."""

import json
import os

import jax
import pytest
import records
import step_profile
from trace_kinds import Event, Op, attribute, classify, read_events, tabulate

# A program as XLA writes it for GPUs, cut to one instruction of every sort.
PRE = "jit(train_step)/jvp(DiffusionTransformer)/DiffusionTransformer._run_blocks/while/body"
TEXT = """\
HloModule jit_train_step, is_scheduled=true, entry_computation_layout={()->f32[]}

%fused_norm (p.0: bf16[8,16,32], p.1: bf16[96]) -> bf16[8,16,32] {
  %p.0 = bf16[8,16,32]{2,1,0} parameter(0)
  %p.1 = bf16[96]{0} parameter(1)
  %index = s32[] add(%p.1, %p.1), metadata={op_name="jit(train_step)/optimizer/add"}
  %biased = bf16[8,16,32]{2,1,0} add(%p.0, %p.0), metadata={op_name="PRE/block/mlp/fc2/add"}
  %gated = bf16[8,16,32]{2,1,0} multiply(%p.0, %biased), metadata={op_name="PRE/block/mul"}
  ROOT %scaled = bf16[8,16,32]{2,1,0} multiply(%gated, %p.0), metadata={op_name="PRE/checkpoint/block/modulate/layer_norm/mul"}
}

%fused_gelu (p.2: bf16[8,16,128]) -> bf16[8,16,128] {
  %p.2 = bf16[8,16,128]{2,1,0} parameter(0)
  ROOT %tanh = bf16[8,16,128]{2,1,0} tanh(%p.2), metadata={op_name="PRE/rematted_computation/block/mlp/activation/tanh"}
}

%fused_cast (p.3: f32[32,128]) -> bf16[128,32] {
  %p.3 = f32[32,128]{1,0} parameter(0)
  %cast = bf16[32,128]{1,0} convert(%p.3), metadata={op_name="PRE/block/mlp/fc1/convert_element_type"}
  ROOT %turned = bf16[128,32]{1,0} transpose(%cast), dimensions={1,0}
}

%fused_adam (p.4: f32[32,128]) -> (f32[32,128], f32[32,128]) {
  %p.4 = f32[32,128]{1,0} parameter(0)
  %root = f32[32,128]{1,0} sqrt(%p.4), metadata={op_name="jit(train_step)/optimizer/sqrt"}
  %mean = f32[32,128]{1,0} multiply(%p.4, %p.4), metadata={op_name="jit(train_step)/ema/mul"}
  ROOT %both = (f32[32,128]{1,0}, f32[32,128]{1,0}) tuple(%root, %mean)
}

%nested (p.5: bf16[128,32]) -> bf16[128,128] {
  %p.5 = bf16[128,32]{1,0} parameter(0)
  ROOT %dot = bf16[128,128]{1,0} dot(%p.5, %p.5), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_name="PRE/block/mlp/fc1/dot_general"}
}

%triton (p.6: bf16[128,32]) -> bf16[128,128] {
  %p.6 = bf16[128,32]{1,0} parameter(0)
  ROOT %inner = bf16[128,128]{1,0} fusion(%p.6), kind=kCustom, calls=%nested
}

%scores (p.7: bf16[16,16]) -> bf16[16,16] {
  %p.7 = bf16[16,16]{1,0} parameter(0)
  ROOT %bmm = bf16[16,16]{1,0} dot(%p.7, %p.7), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_name="PRE/block/attention/vmap(BTNH,BSNH->BNTS)/dot_general"}
}

%stored (p.10: bf16[4,16,32], p.11: bf16[16,32]) -> bf16[4,16,32] {
  %p.10 = bf16[4,16,32]{2,1,0} parameter(0)
  %p.11 = bf16[16,32]{1,0} parameter(1)
  %row = bf16[1,16,32]{2,1,0} bitcast(%p.11)
  ROOT %update = bf16[4,16,32]{2,1,0} dynamic-update-slice(%p.10, %row, %zero, %zero, %zero), metadata={op_name="PRE/jit(dynamic_update_index_in_dim)/dynamic_update_slice"}
}

%stored_product (p.12: bf16[16,16], p.13: bf16[16,16]) -> (bf16[4,16,16], s8[4194304]) {
  %p.12 = bf16[16,16]{1,0} parameter(0)
  %p.13 = bf16[16,16]{1,0} parameter(1)
  %custom-call.85 = (bf16[16,16]{1,0}, s8[4194304]{0}) custom-call(%p.12, %p.13), custom_call_target="__cublas$lt$matmul"
  %product = bf16[16,16]{1,0} get-tuple-element(%custom-call.85), index=0
  %stack = bf16[4,16,16]{2,1,0} dynamic-update-slice(%p.12, %product, %zero, %zero, %zero)
  ROOT %result = (bf16[4,16,16]{2,1,0}, s8[4194304]{0}) tuple(%stack, %product)
}

%split_sum (p.14: f32[8,32,128]) -> f32[4,32,128] {
  %p.14 = f32[8,32,128]{2,1,0} parameter(0)
  %sum = f32[32,128]{1,0} reduce(%p.14, %zero), dimensions={0}, to_apply=%add, metadata={op_name="PRE/block/mlp/fc1/transpose"}
  %rounded = bf16[32,128]{1,0} convert(%sum), metadata={op_name="PRE/block/mlp/fc1/convert_element_type"}
  ROOT %whole = f32[4,32,128]{2,1,0} dynamic-update-slice(%p.14, %rounded, %zero, %zero, %zero)
}

%condition (p.8: (s32[])) -> pred[] {
  %p.8 = (s32[]) parameter(0)
  ROOT %less = pred[] constant(true)
}

%body (p.9: (s32[])) -> (s32[]) {
  %p.9 = (s32[]) parameter(0)
  %cublas = (bf16[128,96]{1,0}, s8[4194304]{0}) custom-call(%x, /*index=1*/%w), custom_call_target="__cublas$lt$matmul", metadata={op_name="PRE/block/attention/qkv/dot_general" stack_frame_id=7}, backend_config={"gemm_backend_config":{"alpha_real":1,"epilogue":"BIAS"}}
  %fmha = (bf16[8,2,16,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %x, %x), custom_call_target="__cudnn$fmhaSoftmaxBackward", metadata={op_name="PRE/block/attention/dot_product_attention_bwd"}, backend_config={"cudnn_fmha_backend_config":{"bmm1_grad_gemm1_dot_dimension_numbers":{}}}
  %loop_multiply_fusion.3 = bf16[8,16,32]{2,1,0} fusion(%x, %b), kind=kLoop, calls=%fused_norm
  %gelu.1 = bf16[8,16,128]{2,1,0} fusion(%x), kind=kLoop, calls=%fused_gelu
  %input_transpose_fusion = bf16[128,32]{1,0} fusion(%w), kind=kInput, calls=%fused_cast
  %gemm_fusion_dot.4 = bf16[128,128]{1,0} fusion(%x), kind=kCustom, calls=%triton, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %gemm_fusion_dot.5 = bf16[16,16]{1,0} fusion(%x), kind=kCustom, calls=%scores, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %keys = bf16[16,16]{1,0} bitcast(%x), metadata={op_name="PRE/block/attention/squeeze"}
  %custom-call.9 = (f32[16,16]{1,0}, s8[4194304]{0}) custom-call(%x, %keys), custom_call_target="__cublas$lt$matmul", metadata={scheduling_name="custom-call.9"}
  %dynamic_slice_fusion = (bf16[4,16,16]{2,1,0}, s8[4194304]{0}) fusion(%x, %keys), kind=kCustom, calls=%stored_product, backend_config={"fusion_backend_config":{"kind":"__custom_fusion","custom_fusion_config":{"name":"dynamic_slice_fusion"}}}
  %fusion-start = ((bf16[4,16,32]{2,1,0}, bf16[16,32]{1,0}), bf16[4,16,32]{2,1,0}, u32[]) fusion-start(%x, %b), kind=kLoop, calls=%stored, metadata={op_name="PRE/jit(dynamic_update_index_in_dim)/dynamic_update_slice"}
  %loop_dynamic_update_slice_fusion = f32[4,32,128]{2,1,0} fusion(%x), kind=kLoop, calls=%split_sum, metadata={op_name="PRE/jit(dynamic_update_index_in_dim)/dynamic_update_slice"}
  ROOT %t = (s32[]) tuple(%p.9)
}

ENTRY %main (a: (s32[])) -> (s32[]) {
  %a = (s32[]) parameter(0)
  %copy.1 = f32[32,128]{0,1} copy(%a)
  %loop_adam_fusion = (f32[32,128]{1,0}, f32[32,128]{1,0}) fusion(%a), kind=kLoop, calls=%fused_adam
  %wrapped_gather = f32[8,32]{1,0} gather(%a, %a), metadata={op_name="jit(train_step)/jvp(DiffusionTransformer)/label_embed/gather"}
  ROOT %while.1 = (s32[]) while(%a), condition=%condition, body=%body
}
""".replace("PRE", PRE)  # noqa: E501


def test_instructions_of_a_gpu_program_are_sorted():
    kinds = {name: op.kind for name, op in classify(TEXT).items()}
    products = ("cublas", "gemm_fusion_dot.4", "loop_dynamic_update_slice_fusion")
    assert [kinds[name] for name in products] == ["matrix products"] * 3
    attention = ("fmha", "gemm_fusion_dot.5", "custom-call.9", "dynamic_slice_fusion")
    assert [kinds[name] for name in attention] == ["attention"] * 4
    assert kinds["loop_multiply_fusion.3"] == "layer norm and modulation"
    assert kinds["gelu.1"] == "GELU"
    assert kinds["loop_adam_fusion"] == "optimiser and EMA"
    copies = ("input_transpose_fusion", "copy.1", "fusion-start")
    assert [kinds[name] for name in copies] == ["copies"] * 3
    assert [kinds[name] for name in ("wrapped_gather", "while.1")] == ["other", "loop"]
    assert classify(TEXT)["gelu.1"].source == "mlp/activation/tanh (recomputed)"


def test_kernels_of_a_gpu_are_tabulated():
    """Two steps on two streams, with a gap, an overlap, and kernels that lack an instruction."""
    one = [
        ("1", "nvjet_hsh_128x256", "cublas", 0, 100),
        ("1", "cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "fmha", 100, 160),
        ("2", "MemcpyD2D", "", 120, 140),  # while attention runs: each has half of these 20
        ("1", "loop_multiply_fusion_3", "", 160, 200),  # its name leads to its instruction
        ("1", "Memset", "cublas", 200, 210),  # not a product
        # The device is idle for 40.
        ("1", "gelu_1", "gelu.1", 250, 300),
        ("1", "loop_adam_fusion", "loop_adam_fusion", 290, 400),  # begins before GELU ends
        ("1", "nvjet_tst_64x8", "lost.7", 400, 430),  # unknown instruction: by its name
        ("1", "mystery", "", 430, 500),
        ("1", "MemcpyD2H", "while.1", 500, 500),
    ]
    events = [
        Event(f"Stream #{line}", name, op, 1e6 * (start + shift), 1e6 * (end + shift))
        for shift in (0, 500)
        for line, name, op, start, end in one
    ]
    profile = tabulate(events, classify(TEXT), steps=2)
    found = {kind: profile.of(kind) for kind in (*step_profile.KINDS, "idle")}
    assert found == {
        "matrix products": (pytest.approx(130), 2),
        "attention": (pytest.approx(50), 1),
        "layer norm and modulation": (pytest.approx(40), 1),
        "GELU": (pytest.approx(40), 1),
        "optimiser and EMA": (pytest.approx(110), 1),
        "copies": (pytest.approx(20), 3),
        "other": (pytest.approx(70), 1),
        "idle": (pytest.approx(40), 0),
    }
    assert profile.span == pytest.approx(500)
    assert profile.unknown == pytest.approx(100)
    assert [entry.name for entry in profile.entries[:2]] == [
        "loop_adam_fusion",
        "nvjet_hsh_128x256",
    ]


# A trace as CUPTI writes it: a kernel before the measured steps, an allocation, an overview.
TRACE = """
planes {
  name: "/device:GPU:0"
  lines {
    id: 7 name: "Stream #7(Kernel,MemcpyD2D)" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 1000000 duration_ps: 2000000 }
    events { metadata_id: 1 offset_ps: 9000000 duration_ps: 2000000 stats { metadata_id: 1 ref_value: 2 } }
    events { metadata_id: 2 offset_ps: 11000000 duration_ps: 500000 stats { metadata_id: 3 str_value: "size:8" } }
    events { metadata_id: 3 offset_ps: 12000000 duration_ps: 500000 stats { metadata_id: 4 str_value: "kind:8" } }
  }
  lines { id: 8 name: "XLA Ops" timestamp_ns: 1000 events { metadata_id: 1 offset_ps: 9000000 duration_ps: 2000000 } }
  event_metadata { key: 1 value { id: 1 name: "nvjet_hsh" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyD2D" } }
  event_metadata { key: 3 value { id: 3 name: "MemoryAlloc" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "cublas" } }
  stat_metadata { key: 3 value { id: 3 name: "memcpy_details" } }
  stat_metadata { key: 4 value { id: 4 name: "memalloc_details" } }
}
planes {
  name: "/host:CPU"
  lines { id: 1 name: "python" timestamp_ns: 1000 events { metadata_id: 1 offset_ps: 5000000 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "measured steps" } }
}
"""  # noqa: E501


def test_the_trace_of_a_gpu_is_read(tmp_path):
    file = tmp_path / "host.xplane.pb"
    file.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(TRACE))
    assert read_events(file, "gpu") == [
        Event("Stream #7(Kernel,MemcpyD2D)", "nvjet_hsh", "cublas", 10_000, 12_000),
        Event("Stream #7(Kernel,MemcpyD2D)", "MemcpyD2D", "", 12_000, 12_500),
    ]
    with pytest.raises(ValueError, match=r"no events of a cpu.*XLA Ops"):
        read_events(file, "cpu")


def test_nested_events_are_counted_once():
    events = [
        Event("a", "call", "call", 0, 100),
        Event("a", "while.1", "while.1", 10, 90),
        Event("a", "dot", "dot", 10, 30),
        Event("a", "add", "add", 40, 60),
        Event("b", "copy", "copy", 20, 40),
    ]
    assert attribute(events) == pytest.approx([20, 35, 15, 20, 10])
    assert attribute(events, loops={1}) == pytest.approx([20, 0, 15, 20, 15])
    assert tabulate(events, {"while.1": Op("loop", "")}).of("idle")[0] == pytest.approx(30e-6)


def test_a_tiny_step_is_profiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_profile, "turn_off_graphs", lambda: None)  # JAX has started already
    file = tmp_path / "calls.json"
    records.write_calls(file, [{"parts": {}}])
    step_profile.main(["--tiny", f"--record={file}", "--part=profile"])
    part = json.loads(file.read_text())["calls"][0]["parts"]["profile"]
    kinds = {row["kind"]: row for row in part["tables"]["kinds"]}
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1)
    for kind in step_profile.KINDS:
        assert kinds[kind]["ms"] > 0 and kinds[kind]["kernels"] >= 1, kind
    assert part["unknown_share"] == 0 and part["wall_ms"] > 0
    longest = part["tables"]["longest"]
    assert len(longest) == 15 and longest[0]["ms"] >= longest[14]["ms"] > 0
    assert "| matrix products |" in capsys.readouterr().out


def test_graphs_are_turned_off_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    for _ in range(2):
        step_profile.turn_off_graphs()
        assert os.environ["XLA_FLAGS"] == "--xla_gpu_enable_command_buffer="
