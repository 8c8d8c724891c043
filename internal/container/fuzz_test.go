package container

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzSpec: an image's config and accounts, all of which its author wrote, give an
// error or a configuration of the runtime that keeps to what is set by us.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"User":"app","Entrypoint":["/bin/sh"],"Env":["A=B","PATH"],"WorkingDir":"../../x","ExposedPorts":{"80/tcp":{}}}`),
		"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", "app:x:1000:app\n")
	f.Add([]byte(`{"User":"4294967296:-1","Cmd":["x"],"Volumes":{"/../..":{}},"StopSignal":"SIGX"}`), "a:b:c", ":::")
	root, bundle := f.TempDir(), f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, config []byte, passwd, group string) {
		var c v1.ImageConfig
		if json.Unmarshal(config, &c) != nil {
			return
		}
		for name, content := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		spec, err := Spec(Options{ID: "x", Bundle: bundle, Rootfs: root, Config: c})
		if err != nil {
			return
		}
		if spec.Root.Path != root || spec.Process.NoNewPrivileges || !strings.HasPrefix(spec.Process.Cwd, "/") || strings.Contains(spec.Process.Cwd, "..") {
			if !strings.Contains(c.WorkingDir, "..") || strings.Contains(spec.Process.Cwd, "/../") {
				t.Errorf("root %q, working directory %q", spec.Root.Path, spec.Process.Cwd)
			}
		}
		for _, set := range [][]string{spec.Process.Capabilities.Bounding, spec.Process.Capabilities.Effective, spec.Process.Capabilities.Inheritable} {
			if len(set) > len(capabilities) {
				t.Errorf("capabilities %q", set)
			}
		}
		if _, err := json.Marshal(spec); err != nil {
			t.Error(err)
		}
	})
}
