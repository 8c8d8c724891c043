// Package config reads thaw's configuration: a TOML file under the values that
// flags and the environment give.
//
// Every setting has a default, so that no file is needed. An unknown setting
// in a file is an error, because a typing error would otherwise pass unseen.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
)

// Places.
const (
	DefaultPath = "/etc/thaw/config.toml"
	DefaultRoot = "/var/lib/thaw"
	// DefaultContainerd is containerd's socket.
	DefaultContainerd = "/run/containerd/containerd.sock"
)

// Config is all that can be configured.
type Config struct {
	// Root is the state directory: layers, indexes, sockets. It has to be on
	// ext4, xfs or btrfs for lazy mounts.
	Root string `toml:"root"`
	// Mount is how images are mounted: auto, fanotify, fuse or eager.
	Mount string `toml:"mount"`
	// Background is the rate of background hydration: off, or bytes a second
	// with a unit (20MB), or empty for no limit.
	Background string `toml:"background"`
	// IdleExit is when a daemon that nothing is mounted by leaves; 0s: never.
	IdleExit Duration `toml:"idle-exit"`
	// Grace is how long readers wait for a new daemon after one died.
	Grace Duration `toml:"grace"`
	// ReadTimeout is how long a read of what is not here waits for its registry.
	ReadTimeout Duration `toml:"read-timeout"`
	// Record says whether starts are recorded: what a container reads until it is
	// ready.
	Record bool `toml:"record"`
	// Insecure lists registry hosts (host or host:port) that may be spoken to in
	// plain http; this machine always may.
	Insecure []string `toml:"insecure"`
	// Mirrors maps a registry host to base URLs that are asked before it.
	Mirrors map[string][]string `toml:"mirrors"`
	// Trust says which indexes are taken: any, local (built on this node) or
	// signed (with TrustKey, and local ones).
	Trust string `toml:"trust"`
	// TrustKey is the file of a public key in PEM, for signed.
	TrustKey string `toml:"trust-key"`
	// MaxMemory is what the daemon's memory aims at, its buffers included; empty:
	// the daemon's default.
	MaxMemory Size `toml:"max-memory"`
	// Metrics is the TCP address (host:port) at which the daemon answers Prometheus;
	// empty: it does not.
	Metrics string `toml:"metrics"`
	// Web is the TCP address (host:port) at which the daemon shows its starts to
	// browsers; empty: it does not. One that is not this machine's own needs WebHosts.
	Web string `toml:"web"`
	// WebHosts are the names that browsers may call it by, besides localhost.
	WebHosts []string `toml:"web-hosts"`
	// Cache bounds the layers on disk.
	Cache Cache `toml:"cache"`
	// Containerd says how containerd is served.
	Containerd Containerd `toml:"containerd"`
	// Credentials say where passwords come from besides docker's configuration.
	Credentials Credentials `toml:"credentials"`
	// Images say how containerd's images are had, by their references; the first
	// that matches counts.
	Images []ImageRule `toml:"images"`
}

// Containerd is the containerd that thaw is a snapshotter of.
type Containerd struct {
	Listen  string `toml:"listen"`  // socket that thaw makes for it; empty: off
	Address string `toml:"address"` // its own socket
	// ImageService is a socket for the kubelet's --image-service-endpoint, from which
	// calls are forwarded to Address; empty: off.
	ImageService string `toml:"image-service"`
	// Content has layers that came lazily downloaded to its content store as well, once
	// the image is here: export and push need them.
	Content bool `toml:"content"`
}

// Credentials are where passwords come from.
type Credentials struct {
	// Keep says how what pulls were made with is kept: CredentialsSealed on disk, or
	// CredentialsMemory.
	Keep string `toml:"keep"`
	Key  string `toml:"key"` // file of 32 bytes that seals; empty: one in the state directory
	// Providers is the kubelet's file of credential-provider plugins, and ProvidersDir
	// the directory of their programs.
	Providers    string `toml:"providers"`
	ProvidersDir string `toml:"providers-dir"`
}

// How credentials are kept.
const (
	CredentialsSealed = "sealed"
	CredentialsMemory = "memory"
)

// Cache says when layers are evicted that nothing uses and nothing pins. Shares
// are of the state directory's file system.
type Cache struct {
	MaxSize Size `toml:"max-size"` // of all layers on disk; empty: no limit
	MinFree Size `toml:"min-free"` // to be left on the disk, which only waiting readers may use; 256 MiB at least
}

// Duration is a time.Duration written as in "30s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Default returns the defaults.
func Default() Config {
	return Config{Root: DefaultRoot, Mount: "auto", Trust: "any", IdleExit: Duration(time.Minute), Grace: Duration(30 * time.Second),
		ReadTimeout: Duration(time.Minute), Record: true, Containerd: Containerd{Address: DefaultContainerd},
		Credentials: Credentials{Keep: CredentialsSealed}}
}

// Load returns the defaults, overridden by the file at path and then by
// THAW_ROOT. An empty path means DefaultPath, which may be missing.
func Load(path string) (Config, error) {
	c := Default()
	explicit := path != ""
	if !explicit {
		path = DefaultPath
	}
	b, err := os.ReadFile(path)
	if err != nil && (explicit || !errors.Is(err, fs.ErrNotExist)) {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := c.parse(b); err != nil {
		return c, fmt.Errorf("parse configuration %s: %w", path, err)
	}
	if root := os.Getenv("THAW_ROOT"); root != "" {
		c.Root = root
	}
	return c, nil
}

func (c *Config) parse(b []byte) error {
	dec := toml.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	err := dec.Decode(c)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		return fmt.Errorf("unknown setting:\n%s", strict.String())
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		return fmt.Errorf("line %d: %w", line, err)
	}
	if err != nil {
		return err
	}
	if c.ReadTimeout <= 0 {
		return fmt.Errorf("read-timeout %q: want more than nothing", time.Duration(c.ReadTimeout))
	}
	if k := c.Credentials.Keep; k != CredentialsSealed && k != CredentialsMemory {
		return fmt.Errorf("credentials.keep %q: want %s or %s", k, CredentialsSealed, CredentialsMemory)
	}
	if (c.Credentials.Providers == "") != (c.Credentials.ProvidersDir == "") {
		return errors.New("credentials.providers and credentials.providers-dir need each other")
	}
	for _, r := range c.Images {
		if err := r.check(); err != nil {
			return err
		}
	}
	_, err = ParseRate(c.Background)
	return err
}

// ParseRate reads a rate as in "20MB": bytes a second, -1 for off, 0 for no
// limit.
func ParseRate(s string) (int64, error) {
	switch s {
	case "":
		return 0, nil
	case "off":
		return -1, nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 {
		return n, nil
	}
	n, err := units.FromHumanSize(s)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("background rate %q: want off, or bytes a second such as 20MB", s)
	}
	return n, nil
}
