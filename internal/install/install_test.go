package install

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/thaw-project/thaw/deploy"
	"github.com/thaw-project/thaw/internal/tomledit"
)

var update = flag.Bool("update", false, "write the golden files anew")

// host is a directory that stands for a host, without a containerd to ask.
func host(t *testing.T, config string) Options {
	t.Helper()
	t.Setenv("PATH", t.TempDir())
	dir := t.TempDir()
	o := Options{Destdir: dir, Root: "/var/lib/thaw", Program: []byte("program")}
	if config != "" {
		b, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, DefaultConfig), string(b))
	}
	return o
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

// tree is all files below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files["/"+rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func install(t *testing.T, o Options) *Plan {
	t.Helper()
	p, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func uninstall(t *testing.T, o Options) *Plan {
	t.Helper()
	p, err := NewEnd(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestConfigs: each real configuration is changed as in its golden file; once
// more changes nothing; the end gives all files back, to the byte.
func TestConfigs(t *testing.T) {
	for _, c := range []struct {
		name, config string
		whole        bool
	}{
		{"default-1.7", "testdata/default-1.7.toml", false},
		{"default-2.2", "testdata/default-2.2.toml", false}, // imports conf.d
		{"docker", "testdata/docker.toml", false},
		{"eks", "testdata/eks.toml", false},
		{"eks-whole", "testdata/eks.toml", true},
		{"k3s", "testdata/k3s.toml", false},
		{"edited", "testdata/edited.toml", false},
		{"edited-whole", "testdata/edited.toml", true},
		{"none", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := host(t, c.config)
			o.Default = c.whole
			before := tree(t, o.Destdir)
			p := install(t, o)
			golden := filepath.Join("testdata", c.name+".diff")
			got := configDiff(p)
			if *update {
				write(t, golden, got)
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("changes differ (-want +got):\n%s", diff)
			}
			after := tree(t, o.Destdir)
			if p := install(t, o); p.Changed() {
				t.Errorf("installing again changes:\n%s", p.Diff())
			}
			if diff := cmp.Diff(after, tree(t, o.Destdir)); diff != "" {
				t.Errorf("installing again changes files (-want +got):\n%s", diff)
			}
			uninstall(t, o)
			if diff := cmp.Diff(before, tree(t, o.Destdir)); diff != "" {
				t.Errorf("after the end (-before +after):\n%s", diff)
			}
			if p := uninstall(t, o); p.Changed() {
				t.Errorf("ending again changes:\n%s", p.Diff())
			}
		})
	}
}

// configDiff is the part of a plan's diff that containerd reads.
func configDiff(p *Plan) string {
	q := *p
	q.Files = slices.DeleteFunc(slices.Clone(p.Files), func(f File) bool { return !f.config })
	return strings.ReplaceAll(q.Diff(), "linux/"+runtime.GOARCH, "linux/ARCH")
}

func TestUserEditsSurvive(t *testing.T) {
	o := host(t, "testdata/edited.toml")
	install(t, o)
	path := filepath.Join(o.Destdir, DefaultConfig)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, "# mine\n"+string(b)+"[metrics]\n  address = \":1\"\n")
	p := uninstall(t, o)
	old, err := os.ReadFile("testdata/edited.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := "# mine\n" + string(old) + "[metrics]\n  address = \":1\"\n"
	if got := tree(t, o.Destdir)[DefaultConfig]; got != want {
		t.Errorf("configuration after the end (-want +got):\n%s", cmp.Diff(want, got))
	}
	if _, err := os.Stat(path + backupSuffix); err != nil || len(p.Notes) == 0 {
		t.Errorf("the backup of a file that others changed is gone, or was not mentioned: %v %q", err, p.Notes)
	}
}

func TestSwitchDefault(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	before := tree(t, o.Destdir)
	install(t, o)
	o.Default = true
	if p := install(t, o); !strings.Contains(p.Diff(), "+snapshotter = 'thaw'") {
		t.Errorf("--default afterwards changes:\n%s", p.Diff())
	}
	o.Default = false
	install(t, o)
	uninstall(t, o)
	if diff := cmp.Diff(before, tree(t, o.Destdir)); diff != "" {
		t.Errorf("after the end (-before +after):\n%s", diff)
	}
}

func TestKeepsWhatWasThere(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	write(t, filepath.Join(o.Destdir, programPath), "older program")
	write(t, filepath.Join(o.Destdir, unitPath), "somebody's unit")
	p := install(t, o)
	files := tree(t, o.Destdir)
	if files[programPath] != "program" || files[unitPath] != "somebody's unit" || len(p.Notes) == 0 {
		t.Errorf("program %q, unit %q, notes %q", files[programPath], files[unitPath], p.Notes)
	}
	if st, err := os.Stat(filepath.Join(o.Destdir, programPath)); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("program: %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(o.Destdir, DefaultConfig)); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("configuration: %v, %v", st.Mode(), err)
	}
	uninstall(t, o)
	files = tree(t, o.Destdir)
	if files[programPath] == "" || files[unitPath] != "somebody's unit" || files[unitDropIn] != "" {
		t.Errorf("what was there before is gone: %v", files)
	}
}

func TestSymlink(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	path := filepath.Join(o.Destdir, DefaultConfig)
	if err := os.Rename(path, path+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("config.toml.real", path); err != nil {
		t.Fatal(err)
	}
	install(t, o)
	if b, err := os.ReadFile(path + ".real"); err != nil || !tomledit.Edited(b) {
		t.Errorf("the file that is linked to was not changed: %v", err)
	}
	if _, err := os.Readlink(path); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, config, err string }{
		{"no TOML", "version = 3\n[plugins\nx = 1\n", "config.toml: line 2"},
		{"table within braces", "version = 3\nproxy_plugins = { x = { type = 'snapshot', address = '/x' } }\n", "cannot be changed line by line"},
		{"version 1 for Kubernetes", "[plugins.cri]\n", "version 1"},
		{"generated, imports nothing", "# File generated by k3s. DO NOT EDIT.\nversion = 3\n", "imports no directory"},
		{"generated, containerd 1.7", "# File generated by k3s. DO NOT EDIT.\nversion = 2\nimports = ['/x/*.toml']\n", "imports no directory"},
		{"damaged marks", "version = 3\n# >>> thaw: x\n", "line 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := host(t, "")
			write(t, filepath.Join(o.Destdir, DefaultConfig), c.config)
			before := tree(t, o.Destdir)
			_, err := New(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want an error with %q", err, c.err)
			}
			if diff := cmp.Diff(before, tree(t, o.Destdir)); diff != "" {
				t.Errorf("files changed:\n%s", diff)
			}
		})
	}
}

// TestContainerdRefuses: what containerd cannot read, or reads otherwise, is
// taken back.
// What somebody put between the marks is not thrown away without a copy.
func TestEditsBetweenMarks(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	install(t, o)
	path := filepath.Join(o.Destdir, DefaultConfig)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(b), "# <<< thaw", "[debug]\nlevel = 'mine'\n# <<< thaw", 1)
	write(t, path, edited)
	p := install(t, o)
	if got := tree(t, o.Destdir); got[DefaultConfig] != string(b) || got[DefaultConfig+backupSuffix] != edited {
		t.Errorf("files: %v", got)
	}
	if !strings.Contains(strings.Join(p.Notes, " "), "[debug]") {
		t.Errorf("notes: %q", p.Notes)
	}
	o.Default = true // lines that are ours in another way are no reason
	if p := install(t, o); p.Backup != "" {
		t.Errorf("backup for %q", p.Notes)
	}
}

// A configuration that another program wrote anew has no marks: nothing can be
// taken back, and nothing is.
func TestEndWithoutMarks(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	install(t, o)
	path := filepath.Join(o.Destdir, DefaultConfig)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := toml.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	if b, err = toml.Marshal(all); err != nil {
		t.Fatal(err)
	}
	write(t, path, string(b))
	var marks *MarksError
	if _, err := NewEnd(o); !errors.As(err, &marks) || marks.Path != DefaultConfig {
		t.Errorf("got %v", err)
	}
	delete(all, "proxy_plugins")
	if b, err = toml.Marshal(all); err != nil {
		t.Fatal(err)
	}
	write(t, path, string(b))
	uninstall(t, o)
}

// script makes a program for the shell.
func script(t *testing.T, path, lines string) {
	t.Helper()
	write(t, path, "#!/bin/sh\nPATH=/usr/bin:/bin\n"+lines+"\n")
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestContainerdRefuses(t *testing.T) {
	for _, c := range []struct{ name, script, err string }{
		{"cannot read what is there", "echo bad key >&2; exit 1", "bad key"},
		{"cannot read what is changed", `grep -q thaw "$2" && { echo bad key >&2; exit 1; }; :`, "bad key"},
		{"reads otherwise", "echo '[proxy_plugins.thaw]'; echo 'address = \"/other\"'", "/other"},
		{"loses a handler", `if grep -q thaw "$2"; then cat "$2"; else echo '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]'; echo 'x = 1'; fi`, "runtimes.kata.x otherwise"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := host(t, "testdata/eks.toml")
			before := tree(t, o.Destdir)[DefaultConfig]
			script(t, filepath.Join(os.Getenv("PATH"), "containerd"), c.script)
			p, err := New(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want an error with %q", err, c.err)
			}
			if after := tree(t, o.Destdir)[DefaultConfig]; after != before {
				t.Errorf("the configuration stays changed:\n%s", after)
			}
		})
	}
}

func TestOtherConfig(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	install(t, o)
	o.Config = "/etc/other.toml"
	if _, err := New(t.Context(), o); err == nil || !strings.Contains(err.Error(), DefaultConfig) {
		t.Errorf("a second installation: %v", err)
	}
}

// An end finds the installation whose state directory it was not told, and takes
// back what it can where the record is lost.
func TestEndWithoutRecord(t *testing.T) {
	for name, config := range map[string]string{"lines": "version = 2\n", "drop-in": "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, lost %v", name, lost), func(t *testing.T) {
				o := host(t, "")
				write(t, filepath.Join(o.Destdir, DefaultConfig), config)
				before := tree(t, o.Destdir)
				other := o
				other.Root, other.Socket = "/srv/thaw", "/run/other.sock"
				install(t, other)
				if lost {
					if err := os.RemoveAll(filepath.Join(o.Destdir, "/srv")); err != nil {
						t.Fatal(err)
					}
					before[unitPath], before[programPath] = string(deploy.Unit), "program"
				}
				p := uninstall(t, o)
				if p.Root() != "/srv/thaw" || p.Socket() != "/run/other.sock" {
					t.Errorf("the end of the installation of %s, %s", p.Root(), p.Socket())
				}
				if diff := cmp.Diff(before, tree(t, o.Destdir)); diff != "" {
					t.Errorf("left (-want +got):\n%s", diff)
				}
				if said := strings.Contains(strings.Join(p.Notes, " "), unitPath+" and "+programPath+" stay"); said != lost {
					t.Errorf("notes: %q", p.Notes)
				}
			})
		}
	}
}

func TestUnitWords(t *testing.T) {
	unit := string(unitExtra(Options{Socket: "/run/a.sock", Root: `/srv/my "100%" thaw`}, "/run/$x"))
	for _, want := range []string{"--containerd-listen /run/a.sock --containerd-address /run/$$x --root \"/srv/my \\\"100%%\\\" thaw\"\n", "--upgrade --root \"/srv/my"} {
		if !strings.Contains(unit, want) {
			t.Errorf("want %s in\n%s", want, unit)
		}
	}
}

func TestUnit(t *testing.T) {
	got := unitExtra(Options{Socket: "/s", Root: "/r"}, "/c")
	if !bytes.Contains(got, []byte("\nExecStart=/usr/local/bin/thaw daemon --idle-exit=0s --log-level info --containerd-listen /s --containerd-address /c --root /r\n")) {
		t.Errorf("%s", got)
	}
}

func TestSyntaxErrorHasPlace(t *testing.T) {
	o := host(t, "")
	write(t, filepath.Join(o.Destdir, DefaultConfig), "version = 3\n\nx = \n")
	_, err := New(t.Context(), o)
	var syntax *tomledit.SyntaxError
	if !errors.As(err, &syntax) || syntax.Line != 3 {
		t.Errorf("got %v", err)
	}
}

// fakeSystemctl is a systemctl that notes what it is told, and fails at what matches a
// pattern of the shell.
func fakeSystemctl(t *testing.T, o Options, fails string) (told func() []string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	script := "#!/bin/sh\necho \"$@\" >>" + log + "\ncase \"$*\" in " + fails + ") echo no >&2; exit 1;; esac\n"
	if err := os.WriteFile(filepath.Join(os.Getenv("PATH"), "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(o.Destdir, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		b, _ := os.ReadFile(log)
		os.Remove(log)
		return slices.DeleteFunc(strings.Split(strings.TrimSpace(string(b)), "\n"), func(l string) bool { return strings.HasPrefix(l, "is-active") })
	}
}

func run(t *testing.T, p *Plan, err error) error {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return p.Run(t.Context(), true)
}

func TestRestart(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	told := fakeSystemctl(t, o, "none")
	check := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, told()); diff != "" {
			t.Errorf("%s tells systemd (-want +got):\n%s", what, diff)
		}
	}
	p, err := New(t.Context(), o)
	if err := run(t, p, err); err != nil {
		t.Fatal(err)
	}
	check("installing", "daemon-reload", "enable thaw.service", "restart thaw.service", "restart containerd.service")
	p, err = New(t.Context(), o)
	if err := run(t, p, err); err != nil {
		t.Fatal(err)
	}
	check("installing again", "daemon-reload", "enable thaw.service", "start thaw.service")
	o.Program = []byte("newer")
	p, err = New(t.Context(), o)
	if err := run(t, p, err); err != nil {
		t.Fatal(err)
	}
	check("a newer program", "daemon-reload", "enable thaw.service", "restart thaw.service")
	p, err = NewEnd(o)
	if err := run(t, p, err); err != nil {
		t.Fatal(err)
	}
	check("the end", "restart containerd.service", "disable --now thaw.service", "daemon-reload")
}

func TestRestartK3s(t *testing.T) {
	o := host(t, "")
	o.Config = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
	b, err := os.ReadFile("testdata/k3s.toml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.Destdir, o.Config), string(b))
	told := fakeSystemctl(t, o, "'is-active --quiet k3s.service'")
	p, err := New(t.Context(), o)
	if err := run(t, p, err); err != nil {
		t.Fatal(err)
	}
	if got := told(); !slices.Contains(got, "restart k3s-agent.service") {
		t.Errorf("systemd was told %q", got)
	}
	if got := tree(t, o.Destdir)[unitDropIn]; !strings.Contains(got, " --containerd-address /run/k3s/containerd/containerd.sock\n") {
		t.Errorf("the daemon is not told where k3s' containerd listens:\n%s", got)
	}
}

// TestAsksK3s: its configuration is read by its own containerd, whatever else the
// host has.
func TestAsksK3s(t *testing.T) {
	o := host(t, "")
	o.Config = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
	write(t, filepath.Join(o.Destdir, o.Config), "version = 3\n")
	script(t, filepath.Join(os.Getenv("PATH"), "containerd"), "echo Docker is asked >&2; exit 1")
	script(t, filepath.Join(o.Destdir, "/var/lib/rancher/k3s/data/current/bin/containerd"), "echo k3s is asked >&2; exit 1")
	p, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "k3s is asked") {
		t.Error(err)
	}
}

// TestContainerdDoesNotStart: it gets its old configuration, and is started with
// that.
func TestContainerdDoesNotStart(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	before := tree(t, o.Destdir)[DefaultConfig]
	told := fakeSystemctl(t, o, "'restart containerd.service'")
	p, err := New(t.Context(), o)
	if err := run(t, p, err); err == nil || !strings.Contains(err.Error(), "restart containerd") {
		t.Errorf("got %v", err)
	}
	if after := tree(t, o.Destdir)[DefaultConfig]; after != before {
		t.Errorf("the configuration stays changed:\n%s", after)
	}
	if got := told(); len(got) < 2 || got[len(got)-2] != got[len(got)-1] {
		t.Errorf("containerd was not started again: %q", got)
	}
}

// TestDaemonDoesNotStart: containerd's configuration is as before, and containerd is
// left alone.
func TestDaemonDoesNotStart(t *testing.T) {
	o := host(t, "testdata/eks.toml")
	before := tree(t, o.Destdir)[DefaultConfig]
	told := fakeSystemctl(t, o, "'restart thaw.service'")
	p, err := New(t.Context(), o)
	if err := run(t, p, err); err == nil || !strings.Contains(err.Error(), "restart thaw.service") || !strings.Contains(err.Error(), "from before") {
		t.Errorf("got %v", err)
	}
	if after := tree(t, o.Destdir)[DefaultConfig]; after != before {
		t.Errorf("the configuration stays changed:\n%s", after)
	}
	if got := told(); slices.Contains(got, "restart containerd.service") {
		t.Errorf("systemd was told %q", got)
	}
}
