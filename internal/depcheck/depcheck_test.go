// Package depcheck holds the test that keeps the house in order: imports go
// down only, and siblings do not import each other.
//
// Every package of the module stands on a floor of the table below; one that
// does not is an error, so a new package says where it belongs. What the floors
// alone do not say is a list of forbidden edges, each with its reason. The test
// reads what `go list` says of the code that is built; imports of tests are
// free.
package depcheck

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/thaw-project/thaw/"

// floors from the ground up. A package may import those of lower floors, and
// its own room: the packages under the same first directory of internal.
var floors = []struct {
	name     string
	packages []string
}{
	{"words", []string{"./deploy", "./internal/oci", "./internal/config", "./internal/testenv", "./internal/testenv/browser", "./internal/powercut", "./internal/fallback"}},
	{"formats", []string{"./internal/inflate", "./internal/spanhash", "./internal/tomledit", "./internal/layertar", "./internal/layertar/layertartest", "./internal/erofs",
		"./internal/trace", "./internal/health", "./internal/profile", "./internal/profile/profiletest", "./internal/profile/waterfall"}},
	{"index", []string{"./internal/index"}},
	{"sources", []string{"./internal/sources", "./internal/sources/ecs", "./internal/sources/kubernetes", "./internal/sources/containerd"}},
	{"I/O", []string{"./internal/registry", "./internal/layerstore", "./internal/indexstore", "./internal/tracestore", "./internal/profilestore", "./internal/credentials", "./internal/journal", "./internal/metrics", "./internal/spans", "./internal/spans/export", "./internal/systemd", "./internal/report"}},
	{"engines", []string{"./internal/budget", "./internal/criproxy", "./internal/emit", "./internal/hydrate", "./internal/startup", "./internal/indexer", "./internal/trust", "./internal/snapshotter", "./internal/container", "./internal/mount", "./internal/mount/fanotify",
		"./internal/mount/fanotify/group", "./internal/mount/fuse", "./internal/mount/keeper", "./internal/mount/mounttest"}},
	{"services", []string{"./internal/daemon", "./internal/daemon/api", "./internal/lab", "./internal/watch", "./internal/install"}},
	{"measuring", []string{"./internal/bench", "./internal/bench/containerd", "./internal/cloud", "./internal/cloud/aws", "./internal/cloud/kube"}},
	{"profiling", []string{"./internal/measure", "./internal/measure/attach", "./internal/measure/clock", "./internal/measure/gate", "./internal/measure/opens", "./internal/measure/tracefs"}},
	{"commands", []string{"./cmd/thaw", "./cmd/thaw-bench-containerd", "./cmd/thaw-otel", "./cmd/thaw-cloud"}},
}

// forbidden edges that the floors would allow. Patterns are Go's: "x/..." is x
// and all under it, "./" begins what is ours.
var forbidden = []struct {
	from   []string
	to     []string
	direct bool // only an import is forbidden, else also reaching it through others
	reason string
}{
	{[]string{"./internal/inflate", "./internal/layertar", "./internal/erofs"}, []string{"./internal/..."}, false,
		"a format is read and tested without anything of ours; it is the part that others could take away"},
	{[]string{"./internal/oci"}, []string{"./internal/...", "net/http", "os/exec"}, false,
		"words: no I/O, no packages of ours"},
	{[]string{"./internal/mount/keeper"}, []string{"./internal/oci", "./internal/inflate", "./internal/index", "./internal/registry", "./internal/layerstore",
		"./internal/indexstore", "./internal/hydrate", "./internal/indexer", "./internal/container", "./internal/daemon/...", "net/http", "github.com/klauspost/compress/zstd"}, false,
		"the keeper outlives crashes of the daemon because it does nothing that can crash: it holds descriptors and denies, it fetches and decodes nothing"},
	{[]string{"./internal/mount/keeper", "./internal/mount/fanotify/group"}, []string{"./internal/mount", "./internal/mount/fanotify"}, false,
		"both processes speak to the kernel through package group; the keeper knows no mounts"},
	{[]string{"./internal/mount/fanotify/group"}, []string{"./internal/..."}, false,
		"it speaks to the kernel and decides nothing"},
	{[]string{"./internal/mount/fuse"}, []string{"./internal/mount/fanotify"}, false,
		"each mounter is understood, and works, without the other"},
	{[]string{"./internal/mount/fanotify"}, []string{"./internal/mount/fuse"}, false,
		"each mounter is understood, and works, without the other"},
	{[]string{"./internal/mount"}, []string{"./internal/mount/..."}, true,
		"the contract does not know its implementations"},
	{[]string{"./internal/mount/..."}, []string{"./internal/oci", "./internal/index", "./internal/registry", "./internal/layerstore", "./internal/hydrate"}, false,
		"a mounter knows layers and a Handler; who brings the bytes is the daemon's business, and readers wait inside the mounter"},
	{[]string{"./internal/systemd"}, []string{"./internal/..."}, false,
		"it carries descriptors and lines, whatever they are"},
	{[]string{"./internal/layerstore"}, []string{"./internal/..."}, false,
		"the store believes digests, not indexes: it is given a span table and judges files by it"},
	{[]string{"./internal/registry"}, []string{"./internal/index", "./internal/layertar", "./internal/erofs", "./internal/inflate"}, false,
		"a registry moves blobs; it does not look into them"},
	{[]string{"./internal/criproxy"}, []string{"google.golang.org/grpc", "./internal/credentials"}, false,
		"it forwards calls, whatever they are, and keeps nothing"},
	{[]string{"./internal/hydrate"}, []string{"./internal/oci"}, true,
		"the scheduler knows layers, not images"},
	{[]string{"./internal/container"}, []string{"./internal/..."}, false,
		"a container runs on a root directory, however it was made"},
	{[]string{"./internal/daemon/api"}, []string{"./internal/..."}, false,
		"commands speak to a daemon without linking it in"},
	{[]string{"./internal/daemon/..."}, []string{"./internal/lab", "./internal/config"}, false,
		"the product does not know its test bench; settings are handed down by cmd"},
	{[]string{"./internal/bench"}, []string{"./internal/daemon"}, false,
		"what is measured is programs, thaw among them, from outside"},
	{[]string{"./cmd/thaw"}, []string{"./internal/bench/containerd", "github.com/containerd/containerd/v2/client"}, false,
		"containerd's client would double the program and cost each start 3 ms: it is in cmd/thaw-bench-containerd"},
	{[]string{"./internal/snapshotter"}, []string{"./internal/..."}, false,
		"containerd's contract over images, whoever has them"},
	{[]string{"./internal/daemon/...", "./internal/mount/...", "./internal/hydrate"}, []string{"google.golang.org/grpc"}, true,
		"gRPC is how containerd speaks; nothing else does"},
	{[]string{"./internal/tomledit", "./deploy"}, []string{"./internal/..."}, false,
		"text of other people's files is all that it knows"},
	{[]string{"./cmd/thaw"}, []string{"./internal/spans/export", "go.opentelemetry.io/otel/sdk/..."}, false,
		"who wants no traces pays nothing for them: the SDK is in cmd/thaw-otel"},
	{[]string{"./cmd/thaw"}, []string{"./internal/cloud/aws", "./internal/cloud/kube", "github.com/aws/aws-sdk-go-v2/...", "k8s.io/client-go/..."}, false,
		"who asks no cloud pays nothing for it: the clients are in cmd/thaw-cloud"},
	{[]string{"./internal/cloud"}, []string{"./internal/..."}, false,
		"it starts a program and reads lines"},
	{[]string{"./internal/sources/..."}, []string{"net", "os/exec"}, false,
		"documents in, records out, however they were come by"},
	{[]string{"./internal/spans"}, []string{"./internal/...", "go.opentelemetry.io/..."}, false,
		"it starts a program and writes lines"},
	{[]string{"./internal/lab"}, []string{"./internal/..."}, false,
		"the lab judges our registry client, so it shares no code with it"},
	{[]string{"./cmd/thaw"}, []string{"./internal/testenv/...", "./internal/powercut", "./internal/mount/mounttest", "./internal/layertar/layertartest", "./internal/profile/profiletest", "testing"}, false,
		"test support does not belong in the binary"},
	{[]string{"./internal/..."}, []string{"github.com/spf13/cobra"}, false,
		"the command line ends in cmd"},
}

// listed is what `go list` says of a package.
type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

// short is the path of a package of ours from the module's root, and all others
// as they are.
func short(path string) string {
	if rest, ours := strings.CutPrefix(path, module); ours {
		return "./" + rest
	}
	return path
}

func packages(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,GoFiles", module+"...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := map[string]listed{}
	for dec := json.NewDecoder(out); ; {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("decode output of go list: %v\n%s", err, &stderr)
		}
		if len(p.GoFiles) > 0 { // else it has tests only
			all[short(p.ImportPath)] = p
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	return all
}

// floorOf returns the floor of a package of ours, counted from the ground, or
// -1.
func floorOf(name string) int {
	for i, f := range floors {
		if slices.Contains(f.packages, name) {
			return i
		}
	}
	return -1
}

// room is the first directory under internal.
func room(name string) string {
	name = strings.TrimPrefix(name, "./internal/")
	name, _, _ = strings.Cut(name, "/")
	return name
}

func TestFloors(t *testing.T) {
	all := packages(t)
	for name, p := range all {
		floor := floorOf(name)
		if floor < 0 {
			t.Errorf("%s stands on no floor: put it into the table here, with the reasons for edges that it must not have", name)
			continue
		}
		for _, path := range p.Imports {
			to := short(path)
			if !strings.HasPrefix(to, "./") || floorOf(to) < floor || room(to) == room(name) {
				continue
			}
			t.Errorf("%s (%s) imports %s (%s): imports go down only, and siblings do not import each other",
				name, floors[floor].name, to, floors[floorOf(to)].name)
		}
	}
	for _, f := range floors {
		for _, name := range f.packages {
			if _, ok := all[name]; !ok {
				t.Errorf("%s is in the table here, but not in the module", name)
			}
		}
	}
}

func TestForbidden(t *testing.T) {
	all := packages(t)
	for _, f := range forbidden {
		for name, p := range all {
			if !matches(name, f.from) {
				continue
			}
			reached := p.Deps
			if f.direct {
				reached = p.Imports
			}
			for _, path := range reached {
				to := short(path)
				if to == name || !matches(to, f.to) {
					continue
				}
				t.Errorf("%s reaches %s%s: %s", name, to, via(all, name, path), f.reason)
			}
		}
	}
}

// via says how a package reaches another, where it does not import it itself.
func via(all map[string]listed, from, path string) string {
	if slices.Contains(all[from].Imports, path) {
		return ""
	}
	for _, next := range all[from].Imports {
		if p, ours := all[short(next)]; ours && slices.Contains(p.Deps, path) {
			return " through " + short(next)
		}
	}
	return " through another module"
}

func matches(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		dir, all := strings.CutSuffix(p, "/...")
		return name == dir || all && strings.HasPrefix(name, dir+"/")
	})
}
