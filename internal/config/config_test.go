package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLoad(t *testing.T) {
	t.Setenv("THAW_ROOT", "")
	for _, c := range []struct {
		name, file string
		want       func(*Config)
		err        string // part of the error, "" for none
	}{
		{"empty", "", func(*Config) {}, ""},
		{"all", `
root = "/srv/thaw"
mount = "eager"
background = "20MB"
idle-exit = "5m"
grace = "2s"
read-timeout = "90s"
record = false
insecure = ["registry.local:5000"]
max-memory = "64MB"
trust = "signed"
trust-key = "/etc/thaw/key.pub"
metrics = "127.0.0.1:9798"
web = "127.0.0.1:9799"
web-hosts = ["node1.lan"]
[mirrors]
"docker.io" = ["https://mirror.example"]
[cache]
max-size = "50GB"
min-free = "10%"
[containerd]
listen = "/run/thaw/snapshotter.sock"
address = "/run/k3s/containerd/containerd.sock"
image-service = "/run/thaw/cri.sock"
[credentials]
keep = "memory"
key = "/run/credentials/thaw.service/key"
providers = "/etc/kubernetes/providers.yaml"
providers-dir = "/usr/libexec/kubernetes"
[[images]]
match = "**/pause"
mode = "lazy"
`, func(c *Config) {
			*c = Config{Root: "/srv/thaw", Mount: "eager", Background: "20MB", IdleExit: Duration(5 * time.Minute),
				Grace: Duration(2 * time.Second), ReadTimeout: Duration(90 * time.Second), Record: false, Insecure: []string{"registry.local:5000"},
				Mirrors: map[string][]string{"docker.io": {"https://mirror.example"}},
				Trust:   "signed", TrustKey: "/etc/thaw/key.pub", Metrics: "127.0.0.1:9798", Web: "127.0.0.1:9799", WebHosts: []string{"node1.lan"},
				MaxMemory: Size{Bytes: 64e6}, Cache: Cache{MaxSize: Size{Bytes: 50e9}, MinFree: Size{Percent: 10}},
				Containerd: Containerd{Listen: "/run/thaw/snapshotter.sock", Address: "/run/k3s/containerd/containerd.sock", ImageService: "/run/thaw/cri.sock"},
				Credentials: Credentials{Keep: "memory", Key: "/run/credentials/thaw.service/key", Providers: "/etc/kubernetes/providers.yaml",
					ProvidersDir: "/usr/libexec/kubernetes"},
				Images: []ImageRule{{Match: "**/pause", Mode: ModeLazy}}}
		}, ""},
		{"unknown way to keep credentials", "[credentials]\nkeep = \"paper\"\n", nil, "paper"},
		{"providers without programs", "[credentials]\nproviders = \"/etc/p.yaml\"\n", nil, "need each other"},
		{"unknown setting", "bakground = \"off\"\n", nil, "bakground"},
		{"wrong type", "root = 3\n", nil, "line 1"},
		{"wrong duration", "grace = \"soon\"\n", nil, "soon"},
		{"no time to read", "read-timeout = \"0s\"\n", nil, "read-timeout"},
		{"wrong rate", "background = \"fast\"\n", nil, "fast"},
		{"wrong size", "[cache]\nmax-size = \"huge\"\n", nil, "huge"},
		{"no TOML", "root\n", nil, "parse configuration"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Load(path)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), path) {
					t.Fatalf("got error %v, want one with %q and the path", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			c.want(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("configuration differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that was named and is missing is no error")
	}
}

func TestLoadEnvironment(t *testing.T) {
	t.Setenv("THAW_ROOT", "/from/environment")
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte("root = \"/from/file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || got.Root != "/from/environment" {
		t.Errorf("got %q, %v", got.Root, err)
	}
}

func TestParseRate(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64
		ok   bool
	}{
		{"", 0, true}, {"off", -1, true}, {"1000", 1000, true}, {"20MB", 20_000_000, true}, {"1.5kB", 1500, true},
		{"0", 0, false}, {"-1", 0, false}, {"on", 0, false}, {"MB", 0, false},
	} {
		got, err := ParseRate(c.in)
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("ParseRate(%q) = %d, %v", c.in, got, err)
		}
	}
}
