package container

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// call is a system call as filters see it.
type call struct {
	number, arch uint32
	args         [6]uint64
}

// judge runs a filter as the kernel does, and reports also whether it looked at arguments.
func judge(t *testing.T, program []unix.SockFilter, c call) (verdict uint32, looked bool) {
	t.Helper()
	data := binary.LittleEndian.AppendUint32(nil, c.number)
	data = binary.LittleEndian.AppendUint32(data, c.arch)
	data = binary.LittleEndian.AppendUint64(data, 0x7f00_1234_5678) // instruction pointer
	for _, a := range c.args {
		data = binary.LittleEndian.AppendUint64(data, a)
	}
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		i := program[pc]
		var taken bool
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			looked = looked || i.K >= dataArgs
			a = binary.LittleEndian.Uint32(data[i.K:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= i.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return i.K, looked
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken = a == i.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			taken = a > i.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken = a >= i.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			taken = a&i.K != 0
		default:
			t.Fatalf("instruction %d has code %#x", pc, i.Code)
		}
		if taken {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
	t.Fatal("ran over the end")
	return 0, false
}

func decodeProgram(b []byte) []unix.SockFilter {
	var out []unix.SockFilter
	for ; len(b) >= 8; b = b[8:] {
		out = append(out, unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])})
	}
	return out
}

// crunFilter returns the filter that crun makes of the specification's profile, and the
// names of system calls that its libseccomp is too old for.
func crunFilter(t *testing.T, spec *specs.Spec, opts Options) ([]unix.SockFilter, map[string]bool) {
	t.Helper()
	if err := writeBundle(opts, spec); err != nil {
		t.Fatal(err)
	}
	client, err := newClient("crun", opts.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	client.Debug = true // for its warnings
	streams, err := openStreams(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer streams.close()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	process, err := create(t.Context(), client, opts, streams)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cleanup(t.Context(), client, opts.ID, opts.Bundle); err != nil {
			t.Error(err)
		}
		if _, err := process.Wait(); err != nil {
			t.Error(err)
		}
	}()
	b, err := os.ReadFile(filepath.Join(client.Root, opts.ID, "seccomp.bpf"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(client.Log)
	if err != nil {
		t.Fatal(err)
	}
	unknown := map[string]bool{}
	for _, m := range regexp.MustCompile("unknown seccomp syscall `([a-z0-9_]+)` ignored").FindAllSubmatch(log, -1) {
		unknown[string(m[1])] = true
	}
	return decodeProgram(b), unknown
}

func needCrun(t *testing.T) {
	testenv.NeedRuntime(t)
	if _, err := FindRuntime("crun"); err != nil || !crunCan() || runtime.GOARCH != "amd64" {
		t.Skip("no crun for x86 that can run here")
	}
}

// The filter we hand to crun does for every system call of every ABI what the one does
// that crun makes of the same profile with libseccomp.
func TestFilterAsLibseccomp(t *testing.T) {
	needCrun(t)
	opts := Options{ID: "test-filter-" + strconv.Itoa(os.Getpid()), Bundle: t.TempDir(), Rootfs: rootfs(t), Args: []string{"/bin/probe"}}
	spec, err := Spec(opts)
	if err != nil {
		t.Fatal(err)
	}
	theirs, unknown := crunFilter(t, spec, opts)
	if len(unknown) > 40 {
		t.Fatalf("libseccomp does not know %d of the profile's names", len(unknown))
	}
	// What it does not know is left to the default by its filter only.
	own := *spec.Linux.Seccomp // the other one is every container's
	own.Syscalls = slices.Clone(own.Syscalls)
	spec.Linux.Seccomp = &own
	for i := range spec.Linux.Seccomp.Syscalls {
		s := &spec.Linux.Seccomp.Syscalls[i]
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(name string) bool { return unknown[name] })
	}
	ours, err := compileProfile(spec.Linux.Seccomp)
	if err != nil {
		t.Fatal(err)
	}
	compared := compare(t, ours, theirs, interesting(spec.Linux.Seccomp))
	t.Logf("compared %d calls, %d and %d instructions; not known to libseccomp: %v", compared, len(ours), len(theirs), slices.Sorted(maps.Keys(unknown)))
}

// interesting returns arguments at which a profile's comparisons could differ.
func interesting(p *specs.LinuxSeccomp) []uint64 {
	values := []uint64{0, 1, 1 << 31, 1 << 32, 1<<64 - 1}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				values = append(values, v-1, v, v+1, v|1<<32, v|1<<63, (v-1)|1<<32, (v+1)|1<<32, ^v)
			}
			for m := a.Value; m != 0; m &= m - 1 {
				values = append(values, m&-m)
			}
		}
	}
	slices.Sort(values)
	return slices.Compact(values)
}

// compare has two filters judge all calls, with the values as each of their arguments
// where one of them looks at arguments.
func compare(t *testing.T, ours, theirs []unix.SockFilter, values []uint64) (compared int) {
	t.Helper()
	numbers := []uint32{x32Bit - 1, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1}
	for n := range uint32(2048) {
		numbers = append(numbers, n, n|x32Bit)
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, 0, 1<<32 - 1} {
		for _, n := range numbers {
			for i := range 6 * len(values) {
				c := call{number: n, arch: arch}
				c.args[i%6] = values[i/6]
				got, saw := judge(t, ours, c)
				want, seen := judge(t, theirs, c)
				compared++
				if got != want {
					t.Errorf("call %#x of arch %#x with arguments %#x: %#x, libseccomp %#x", n, arch, c.args, got, want)
				}
				if got != want || !saw && !seen {
					break
				}
			}
		}
	}
	return compared
}

// What is newer than any libseccomp that the comparison above may run with has the
// numbers of golang.org/x/sys, and is allowed where the profile says so.
func TestFilterNewCalls(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("numbers of amd64")
	}
	p := profileOf(t)
	program, err := compileProfile(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, number := range map[string]uint32{
		"cachestat": unix.SYS_CACHESTAT, "fchmodat2": unix.SYS_FCHMODAT2, "futex_wake": unix.SYS_FUTEX_WAKE, "futex_wait": unix.SYS_FUTEX_WAIT,
		"futex_requeue": unix.SYS_FUTEX_REQUEUE, "statmount": unix.SYS_STATMOUNT, "listmount": unix.SYS_LISTMOUNT, "mseal": unix.SYS_MSEAL,
		"lsm_set_self_attr": unix.SYS_LSM_SET_SELF_ATTR, "setxattrat": unix.SYS_SETXATTRAT, "getxattrat": unix.SYS_GETXATTRAT,
		"listxattrat": unix.SYS_LISTXATTRAT, "removexattrat": unix.SYS_REMOVEXATTRAT, "open_tree_attr": unix.SYS_OPEN_TREE_ATTR,
	} {
		want := uint32(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
		for _, s := range p.Syscalls {
			if slices.Contains(s.Names, name) && s.Action == specs.ActAllow {
				want = unix.SECCOMP_RET_ALLOW
			}
		}
		for arch, n := range map[uint32][]uint32{unix.AUDIT_ARCH_X86_64: {number, number | x32Bit}, unix.AUDIT_ARCH_I386: {number}} {
			for _, n := range n {
				if got, _ := judge(t, program, call{number: n, arch: arch}); got != want {
					t.Errorf("%s, %#x of arch %#x: %#x, want %#x", name, n, arch, got, want)
				}
			}
		}
	}
}

func profileOf(t *testing.T) *specs.LinuxSeccomp {
	t.Helper()
	spec, err := Spec(Options{ID: "x", Bundle: t.TempDir(), Rootfs: t.TempDir(), Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	return spec.Linux.Seccomp
}

// Each comparison there is, at its borders, by both widths.
func TestFilterConditions(t *testing.T) {
	const mask, big = 0xf0, 1<<33 + 7
	cases := []struct {
		op    specs.LinuxSeccompOperator
		value uint64
		two   uint64
		holds func(v uint64) bool
	}{
		{specs.OpEqualTo, 7, 0, func(v uint64) bool { return v == 7 }},
		{specs.OpNotEqual, 7, 0, func(v uint64) bool { return v != 7 }},
		{specs.OpLessThan, 7, 0, func(v uint64) bool { return v < 7 }},
		{specs.OpLessEqual, 7, 0, func(v uint64) bool { return v <= 7 }},
		{specs.OpGreaterThan, 7, 0, func(v uint64) bool { return v > 7 }},
		{specs.OpGreaterEqual, 7, 0, func(v uint64) bool { return v >= 7 }},
		{specs.OpMaskedEqual, mask, 0x30, func(v uint64) bool { return v&mask == 0x30 }},
		{specs.OpEqualTo, big, 0, func(v uint64) bool { return v == big }},
		{specs.OpNotEqual, big, 0, func(v uint64) bool { return v != big }},
		{specs.OpLessThan, big, 0, func(v uint64) bool { return v < big }},
		{specs.OpLessEqual, big, 0, func(v uint64) bool { return v <= big }},
		{specs.OpGreaterThan, big, 0, func(v uint64) bool { return v > big }},
		{specs.OpGreaterEqual, big, 0, func(v uint64) bool { return v >= big }},
	}
	const yes, no = 1, 2
	for _, c := range cases {
		for _, wide := range []bool{true, false} {
			for index := range uint(6) {
				code, err := condition(specs.LinuxSeccompArg{Index: index, Value: c.value, ValueTwo: c.two, Op: c.op}, wide, yes)
				if narrow := !wide && c.value == big; (err != nil) != narrow {
					t.Errorf("%s %#x, wide %v: error %v", c.op, c.value, wide, err)
				}
				if err != nil {
					continue
				}
				for _, v := range []uint64{0, 6, 7, 8, 0x30, 0x3f, 0x130, 0x20, 0x40, 1<<32 | 6, 1<<32 | 7, 1<<32 | 0x30, big - 1, big, big + 1, 1<<34 | 6, 1<<64 - 1} {
					in := call{args: [6]uint64{77, 77, 77, 77, 77, 77}}
					in.args[index] = v
					seen, want := v, uint32(no)
					if !wide {
						seen = uint64(uint32(v))
					}
					if c.holds(seen) {
						want = yes
					}
					if got, _ := judge(t, append(slices.Clone(code), ret(no)), in); got != want {
						t.Errorf("%s %#x, wide %v, of %#x: %d", c.op, c.value, wide, v, got)
					}
				}
			}
		}
	}
}

// Profiles that are not understood to the last are left to the runtime.
func TestFilterRefuses(t *testing.T) {
	errno := uint(5000)
	cases := map[string]func(*specs.LinuxSeccomp){
		"another architecture": func(p *specs.LinuxSeccomp) { p.Architectures = append(p.Architectures, specs.ArchAARCH64) },
		"one less":             func(p *specs.LinuxSeccomp) { p.Architectures = p.Architectures[:2] },
		"flags":                func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog} },
		"a listener":           func(p *specs.LinuxSeccomp) { p.ListenerPath = "/x" },
		"default action":       func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActNotify },
		"action":               func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = specs.ActTrace },
		"errno":                func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = &errno },
		"two conditions":       func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args = make([]specs.LinuxSeccompArg, 2) },
		"comparison":           func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args = []specs.LinuxSeccompArg{{Op: "x"}} },
		"argument": func(p *specs.LinuxSeccomp) {
			p.Syscalls[0].Args = []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}
		},
		"two actions": func(p *specs.LinuxSeccomp) {
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: new(uint)})
		},
	}
	for name, change := range cases {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "write"}, Action: specs.ActAllow}}}
		if _, err := compileProfile(p); err != nil {
			t.Fatal(err)
		}
		change(p)
		if program, err := compileProfile(p); err == nil {
			t.Errorf("%s: made %d instructions of it", name, len(program))
		}
	}
}

// In a container the profile decides, whoever compiled it.
func TestFilterInContainer(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, opts Options) {
		var out bytes.Buffer
		opts.Stdout, opts.Args = &out, []string{"calls"}
		var used []byte
		opts.Created = func(time.Time) {
			used, _ = os.ReadFile(filepath.Join(opts.Bundle, "runtime", opts.ID, "seccomp.bpf"))
		}
		if code, err := Run(t.Context(), opts); err != nil || code != 0 {
			t.Fatalf("code %d, error %v", code, err)
		}
		var got map[string]int
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		eperm := int(unix.EPERM)
		want := map[string]int{"getpid": 0, "socket inet": 0, "personality linux": 0, "personality query": 0, "clone3": int(unix.ENOSYS),
			"keyctl": eperm, "unshare user": eperm, "socket vsock": eperm, "socket alg": eperm, "personality norandom": eperm, "add_key": eperm}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if filepath.Base(opts.Runtime) != "crun" || runtime.GOARCH != "amd64" {
			return
		}
		program, err := compileProfile(profileOf(t))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(decodeProgram(used), program) {
			t.Errorf("crun used a filter of %d bytes, not ours of %d instructions", len(used), len(program))
		}
	})
}

// The names are sorted, for they are searched by halves, and no number is given twice.
func TestSyscallTable(t *testing.T) {
	for i, columns := range [3]func(abiNumbers) int16{
		func(n abiNumbers) int16 { return n.amd64 }, func(n abiNumbers) int16 { return n.x32 }, func(n abiNumbers) int16 { return n.i386 },
	} {
		seen := map[int16]string{}
		for _, n := range x86Syscalls {
			number := columns(n)
			if other, ok := seen[number]; ok && number >= 0 {
				t.Errorf("ABI %d: %s and %s are both %d", i, n.name, other, number)
			}
			seen[number] = n.name
		}
	}
	if !slices.IsSortedFunc(x86Syscalls[:], func(a, b abiNumbers) int { return strings.Compare(a.name, b.name) }) {
		t.Error("not sorted")
	}
}

func BenchmarkFilter(b *testing.B) {
	p, err := dockerProfile()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		program, err := compileProfile(p.linux)
		if err != nil {
			b.Fatal(err)
		}
		encodeProgram(program)
	}
}
