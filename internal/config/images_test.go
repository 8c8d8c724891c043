package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestImageMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(`
images = [
  {match = "registry.lan:5000/ml/**", mode = "eager"},
  {match = "docker.io/library/*", mode = "lazy"},
  {match = "**/tools/*:dev-*", mode = "off"},
  {match = "**/a/**/z", mode = "off"},
]
`), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"registry.lan:5000/ml/big:1":                 ModeEager,
		"registry.lan:5000/ml/a/b@sha256:00":         ModeEager,
		"registry.lan:5000/mlx/big":                  "",
		"docker.io/library/nginx:1.2":                ModeLazy,
		"docker.io/library/nginx/x:1.2":              "",
		"ghcr.io/me/tools/x:dev-1":                   ModeOff,
		"ghcr.io/me/tools/x:1":                       "",
		"tools/x:dev-1":                              ModeOff,
		"registry.k8s.io/pause:3.10":                 ModeOff,
		"registry.k8s.io/pause":                      ModeOff,
		"registry.k8s.io/pausex:3.10":                "",
		"r/a/z":                                      ModeOff,
		"r/a/b/c/z:1":                                ModeOff,
		"r/a/b/c/zz:1":                               "",
		"registry.lan:5000/rancher/pause:3.6@sha256": ModeOff,
	} {
		if got := c.ImageMode(ref); got != want {
			t.Errorf("mode of %s: %q, want %q", ref, got, want)
		}
	}
}

func TestImageRules(t *testing.T) {
	for _, text := range []string{`images = [{match = "a", mode = "sometimes"}]`, `images = [{match = "", mode = "off"}]`,
		`images = [{match = "[", mode = "off"}]`, `images = [{glob = "a", mode = "off"}]`} {
		c := Default()
		if err := c.parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}
