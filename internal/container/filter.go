package container

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// filterAnnotation hands crun a compiled seccomp filter (since 0.16). It then does
// not compile the profile, which takes libseccomp longer than all else that
// crun does; versions that do not know the annotation do. See
// docs/decisions/0022-compiled-seccomp-filter.md.
// https://github.com/containers/crun/blob/main/crun.1.md
const filterAnnotation = "run.oci.seccomp_bpf_data"

// profile is the seccomp profile of all containers: what a container may do
// depends on its capabilities, and they all have the same.
type profile struct {
	linux  *specs.LinuxSeccomp // to be left as it is
	filter string              // compiled, as crun takes it; empty where that cannot be done
}

// dockerProfile is Docker's profile. It takes some milliseconds once.
var dockerProfile = sync.OnceValues(func() (profile, error) {
	linux, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: specCapabilities(0)}})
	if err != nil {
		return profile{}, fmt.Errorf("make seccomp profile for %s: %w", runtime.GOARCH, err)
	}
	program, err := compileProfile(linux)
	if err != nil {
		return profile{linux: linux}, nil // the runtime may know better
	}
	return profile{linux, base64.StdEncoding.EncodeToString(encodeProgram(program))}, nil
})

// addFilter gives the runtime the seccomp profile compiled, if it is crun.
func addFilter(spec *specs.Spec, runtime string) {
	p, err := dockerProfile()
	if filepath.Base(runtime) != "crun" || err != nil || p.filter == "" {
		return
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[filterAnnotation] = p.filter
}

// Offsets in the kernel's struct seccomp_data (seccomp(2)); all little-endian here.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16

	x32Bit = 0x40000000 // of the number of an x32 system call
)

// compileProfile makes a profile for x86 into a filter of the kernel, which does
// what libseccomp's does: the ABIs have their own numbers, arguments are compared
// with 64 bits in the 64-bit ABI and with 32 elsewhere, names that an ABI does
// not have are left out of it, and a call by an ABI that is not the profile's
// kills its thread. Of profiles in general it knows less: those it cannot make
// exactly are an error.
func compileProfile(p *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	abis := slices.Clone(p.Architectures)
	slices.Sort(abis)
	if !slices.Equal(abis, []specs.Arch{specs.ArchX32, specs.ArchX86, specs.ArchX86_64}) {
		return nil, fmt.Errorf("architectures %v", p.Architectures)
	}
	if len(p.Flags) > 0 || p.ListenerPath != "" {
		return nil, fmt.Errorf("flags %v, listener %q", p.Flags, p.ListenerPath)
	}
	fallback, err := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	var sections [3][]unix.SockFilter
	for i, abi := range []struct {
		number func(*abiNumbers) int16
		wide   bool
	}{
		{func(n *abiNumbers) int16 { return n.amd64 }, true},
		{func(n *abiNumbers) int16 { return n.x32 }, false},
		{func(n *abiNumbers) int16 { return n.i386 }, false},
	} {
		calls, err := callsOf(p, fallback, abi.number, abi.wide)
		if err != nil {
			return nil, err
		}
		if i == 1 {
			for n := range calls {
				calls[n].first |= x32Bit
			}
		}
		sections[i] = search(calls, ret(fallback))
	}
	// A tracer has a call left out by setting its number to -1: no ABI's.
	x32 := slices.Concat([]unix.SockFilter{jump(unix.BPF_JEQ, math.MaxUint32, 0, 1), ret(fallback)}, sections[1])
	amd64 := slices.Concat([]unix.SockFilter{load(dataNumber)}, branch(unix.BPF_JGE, x32Bit, x32, sections[0]))
	i386 := slices.Concat([]unix.SockFilter{load(dataNumber)}, sections[2])
	program := slices.Concat([]unix.SockFilter{load(dataArch)}, branch(unix.BPF_JEQ, unix.AUDIT_ARCH_X86_64, amd64,
		branch(unix.BPF_JEQ, unix.AUDIT_ARCH_I386, i386, []unix.SockFilter{ret(unix.SECCOMP_RET_KILL_THREAD)})))
	if len(program) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("%d instructions", len(program))
	}
	return program, nil
}

// verdict is what the filter returns for an action.
func verdict(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch {
	case action == specs.ActAllow && errno == nil:
		return unix.SECCOMP_RET_ALLOW, nil
	case action == specs.ActErrno && errno == nil:
		return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), nil
	case action == specs.ActErrno && *errno <= 4095: // MAX_ERRNO; libseccomp and the kernel differ beyond
		return unix.SECCOMP_RET_ERRNO | uint32(*errno), nil
	}
	return 0, fmt.Errorf("action %s", action)
}

// calls is what becomes of a system call, or of those up to the next.
type calls struct {
	first uint32
	code  []unix.SockFilter // returns
}

// callsOf returns the system calls of one ABI that are not left to the default, by number.
func callsOf(p *specs.LinuxSeccomp, fallback uint32, number func(*abiNumbers) int16, wide bool) ([]calls, error) {
	type rules struct {
		verdict uint32
		always  bool
		tests   []unix.SockFilter
	}
	found := map[int16]*rules{}
	for _, s := range p.Syscalls {
		v, err := verdict(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if v == fallback {
			continue
		}
		if len(s.Args) > 1 {
			return nil, fmt.Errorf("%d conditions of %v", len(s.Args), s.Names)
		}
		for _, name := range s.Names {
			at, ok := slices.BinarySearchFunc(x86Syscalls[:], name, func(n abiNumbers, name string) int { return strings.Compare(n.name, name) })
			if !ok || number(&x86Syscalls[at]) < 0 {
				continue
			}
			n := number(&x86Syscalls[at])
			r := found[n]
			if r == nil {
				r = &rules{verdict: v}
				found[n] = r
			}
			if r.verdict != v {
				return nil, fmt.Errorf("two actions for %s", name)
			}
			if len(s.Args) == 0 {
				r.always = true
				continue
			}
			test, err := condition(s.Args[0], wide, v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			r.tests = append(r.tests, test...)
		}
	}
	var out []calls
	for n, r := range found {
		c := calls{first: uint32(n), code: []unix.SockFilter{ret(r.verdict)}}
		if !r.always {
			c.code = append(r.tests, ret(fallback))
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b calls) int { return int(a.first) - int(b.first) })
	return out, nil
}

// condition returns v if an argument is as it says, and else goes on.
func condition(arg specs.LinuxSeccompArg, wide bool, v uint32) ([]unix.SockFilter, error) {
	mask, want := uint64(math.MaxUint64), arg.Value
	op, negate := uint16(0), false
	switch arg.Op {
	case specs.OpEqualTo, specs.OpNotEqual:
		op, negate = unix.BPF_JEQ, arg.Op == specs.OpNotEqual
	case specs.OpMaskedEqual:
		op, mask, want = unix.BPF_JEQ, arg.Value, arg.ValueTwo
	case specs.OpGreaterEqual, specs.OpLessThan:
		op, negate = unix.BPF_JGE, arg.Op == specs.OpLessThan
	case specs.OpGreaterThan, specs.OpLessEqual:
		op, negate = unix.BPF_JGT, arg.Op == specs.OpLessEqual
	default:
		return nil, fmt.Errorf("comparison %s", arg.Op)
	}
	if arg.Index > 5 || !wide && (want > math.MaxUint32 || arg.Op == specs.OpMaskedEqual && mask > math.MaxUint32) {
		return nil, fmt.Errorf("argument %d compared with %#x, %#x", arg.Index, arg.Value, arg.ValueTwo)
	}
	hit, miss := uint8(0), uint8(1) // over the return at the end
	if negate {
		hit, miss = miss, hit
	}
	low := uint32(dataArgs + 8*arg.Index)
	code := []unix.SockFilter{load(low), and(uint32(mask)), jump(op, uint32(want), hit, miss)}
	if wide {
		high := []unix.SockFilter{load(low + 4), and(uint32(mask >> 32))}
		if op != unix.BPF_JEQ {
			high = append(high, jump(unix.BPF_JGT, uint32(want>>32), hit+4, 0))
		}
		code = slices.Concat(high, []unix.SockFilter{jump(unix.BPF_JEQ, uint32(want>>32), 0, miss+3)}, code)
	}
	return append(code, ret(v)), nil
}

// search finds the system call whose number is loaded by halving.
func search(all []calls, fallback unix.SockFilter) []unix.SockFilter {
	var ranges []calls
	next := uint32(0)
	for _, c := range all {
		if c.first != next {
			ranges = append(ranges, calls{next, []unix.SockFilter{fallback}})
		}
		ranges = append(ranges, c)
		next = c.first + 1
	}
	ranges = append(ranges, calls{next, []unix.SockFilter{fallback}})
	ranges = slices.CompactFunc(ranges, func(a, b calls) bool { return slices.Equal(a.code, b.code) })
	return halve(ranges)
}

func halve(ranges []calls) []unix.SockFilter {
	if len(ranges) == 1 {
		return ranges[0].code
	}
	half := len(ranges) / 2
	return branch(unix.BPF_JGE, ranges[half].first, halve(ranges[half:]), halve(ranges[:half]))
}

// branch goes on with one of two parts; jumps on conditions are short.
func branch(op uint16, k uint32, yes, no []unix.SockFilter) []unix.SockFilter {
	if len(no) <= math.MaxUint8 {
		return slices.Concat([]unix.SockFilter{jump(op, k, uint8(len(no)), 0)}, no, yes)
	}
	return slices.Concat([]unix.SockFilter{jump(op, k, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(no))}}, no, yes)
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func and(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func ret(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }

// encodeProgram returns a filter as x86 has it in memory.
func encodeProgram(program []unix.SockFilter) []byte {
	b := make([]byte, 0, 8*len(program))
	for _, i := range program {
		b = binary.LittleEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return b
}
