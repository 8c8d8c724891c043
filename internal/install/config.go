package install

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/thaw-project/thaw/internal/tomledit"
)

// Name is what containerd calls the snapshotter, and CRI the runtime handler
// that uses it.
const Name = "thaw"

// by stands in containerd's files at what was changed.
const by = `by "thaw install containerd"; "thaw uninstall containerd" takes it back`

// Plugins of containerd, by the versions of its configuration.
const (
	criPlugin      = "io.containerd.grpc.v1.cri"       // of version 2
	imagesPlugin   = "io.containerd.cri.v1.images"     // of versions 3 and 4
	runtimePlugin  = "io.containerd.cri.v1.runtime"    // of versions 3 and 4
	transferPlugin = "io.containerd.transfer.v1.local" // of all
	grpcPlugin     = "io.containerd.server.v1.grpc"    // of version 4
	defaultRuntime = "runc"
	defaultAddress = "/run/containerd/containerd.sock"
)

// settings are what containerd is told.
type settings struct {
	socket string // where thaw's daemon listens
	root   string // its state directory
	whole  bool   // the snapshotter of everything that names none
}

// ErrVersion is a configuration of a version that cannot say what is needed.
var ErrVersion = errors.New("configuration of version 1")

// configVersion is what the file says; a file without a version is one of version 1.
func configVersion(d *tomledit.Document) int {
	if v, ok := d.Get("version"); ok {
		if n, ok := v.(int64); ok {
			return int(n)
		}
	}
	return 1
}

// grpcAddress is the socket that containerd says it listens on; "" for its default.
func grpcAddress(d *tomledit.Document) string {
	for _, path := range [][]string{{"grpc", "address"}, {"plugins", grpcPlugin, "address"}} {
		if v, ok := d.Get(path...); ok {
			if s, _ := v.(string); filepath.IsAbs(s) && s != defaultAddress {
				return s
			}
		}
	}
	return ""
}

// withCRI reports whether containerd serves Kubernetes.
func withCRI(d *tomledit.Document) bool {
	v, _ := d.Get("disabled_plugins")
	list, _ := v.([]any)
	return !slices.ContainsFunc(list, func(v any) bool {
		return v == "cri" || v == criPlugin || v == imagesPlugin || v == runtimePlugin
	})
}

// dropInDir is the first directory of which all files are imported, from the
// configuration at path; "" for none. containerd 1.x merges imported plugins by
// replacing the whole section, so for version 2 there is none.
func dropInDir(d *tomledit.Document, path string) string {
	if configVersion(d) < 3 {
		return ""
	}
	v, _ := d.Get("imports")
	list, _ := v.([]any)
	for _, v := range list {
		pattern, _ := v.(string)
		dir, ok := strings.CutSuffix(pattern, "/*.toml")
		if !ok || strings.Contains(dir, "*") {
			continue
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(filepath.Dir(path), dir)
		}
		return filepath.Clean(dir)
	}
	return ""
}

// edit puts the settings into a configuration, or, with into, into another file
// that is imported by it.
func (s settings) edit(d, into *tomledit.Document) error {
	if into == nil {
		into = d
	}
	version := configVersion(d)
	proxy := []string{"proxy_plugins", Name}
	e := edits{into: into}
	e.set("snapshot", append(proxy, "type")...)
	e.set(s.socket, append(proxy, "address")...)
	e.set(s.root, append(proxy, "exports", "root")...)
	e.set("true", append(proxy, "exports", "enable_remote_snapshot_annotations")...)
	s.unpack(&e, d)
	if !withCRI(d) {
		return e.err
	}
	// Without annotations the snapshotter is not told which image a layer is of.
	switch {
	case version < 2:
		return fmt.Errorf("%w: it cannot say what Kubernetes' pods need", ErrVersion)
	case version == 2:
		base := []string{"plugins", criPlugin, "containerd"}
		e.set(false, append(base, "disable_snapshot_annotations")...)
		if s.whole {
			e.set(Name, append(base, "snapshotter")...)
		}
		s.handler(&e, d, base)
	default:
		images := []string{"plugins", imagesPlugin}
		e.set(false, append(images, "disable_snapshot_annotations")...)
		if s.whole {
			e.set(Name, append(images, "snapshotter")...)
		}
		s.handler(&e, d, []string{"plugins", runtimePlugin, "containerd"})
	}
	// containerd 2.x pulls by this; when it migrates version 2 it does not make it of the handler's. 1.7 does not look at it.
	e.set(Name, "plugins", imagesPlugin, "runtime_platforms", Name, "snapshotter")
	return e.err
}

// unpack lets the transfer service (ctr and nerdctl from 2.x on, CRI from 2.1
// on) unpack for the snapshotter. A list replaces the built-in one, so that has
// to be in it too.
func (s settings) unpack(e *edits, d *tomledit.Document) {
	path := []string{"plugins", transferPlugin, "unpack_config"}
	v, there := d.Get(path...)
	list, _ := v.([]any)
	platform := "linux/" + runtime.GOARCH
	entry := func(snapshotter string) []tomledit.Pair {
		return []tomledit.Pair{{Key: "platform", Value: platform}, {Key: "snapshotter", Value: snapshotter}, {Key: "differ", Value: "walking"}}
	}
	if slices.ContainsFunc(list, func(v any) bool { m, _ := v.(map[string]any); return m["snapshotter"] == Name }) {
		return
	}
	if !there {
		e.append(entry("overlayfs"), path...)
	} else if e.into != d { // imported lists replace it
		for _, v := range list {
			m, _ := v.(map[string]any)
			var pairs []tomledit.Pair
			for _, k := range slices.Sorted(maps.Keys(m)) {
				pairs = append(pairs, tomledit.Pair{Key: k, Value: m[k]})
			}
			e.append(pairs, path...)
		}
	}
	e.append(entry(Name), path...)
}

// handler makes the runtime handler: the default one, with another snapshotter.
func (s settings) handler(e *edits, d *tomledit.Document, base []string) {
	name := defaultRuntime
	if v, ok := d.Get(append(slices.Clone(base), "default_runtime_name")...); ok {
		if n, _ := v.(string); n != "" && n != Name {
			name = n
		}
	}
	to := append(slices.Clone(base), "runtimes", Name)
	if _, ok := d.Get(append(slices.Clone(base), "runtimes")...); !ok && configVersion(d) < 3 && name == defaultRuntime {
		// containerd 1.7 drops its built-in handler where a file has any.
		built := append(slices.Clone(base), "runtimes", defaultRuntime)
		e.set("io.containerd.runc.v2", append(built, "runtime_type")...)
		e.set("podsandbox", append(built, "sandbox_mode")...)
	}
	v, _ := d.Get(append(slices.Clone(base), "runtimes", name)...)
	like, _ := v.(map[string]any)
	if t, _ := like["runtime_type"].(string); t == "" {
		e.set("io.containerd.runc.v2", append(to, "runtime_type")...)
	}
	e.copy(like, to)
	e.set(Name, append(to, "snapshotter")...)
}

// edits are changes of a file, until one fails.
type edits struct {
	into *tomledit.Document
	err  error
}

func (e *edits) set(value any, path ...string) {
	if e.err == nil {
		e.err = e.into.Set(value, slices.Clone(path)...)
	}
}

func (e *edits) append(pairs []tomledit.Pair, path ...string) {
	if e.err == nil {
		e.err = e.into.Append(pairs, path...)
	}
}

// copy sets what is in a table and is not the value that containerd has for
// what is not said.
func (e *edits) copy(m map[string]any, to []string) {
	keys := slices.Sorted(maps.Keys(m))
	for _, k := range keys {
		path := append(slices.Clone(to), k)
		switch v := m[k].(type) {
		case map[string]any:
		default:
			if k != "snapshotter" && !empty(v) {
				e.set(v, path...)
			}
		}
	}
	for _, k := range keys {
		if t, ok := m[k].(map[string]any); ok {
			e.copy(t, append(slices.Clone(to), k))
		}
	}
}
