package credentials

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"go.yaml.in/yaml/v3"
)

const (
	maxConfigBytes = 1 << 20
	maxAnswerBytes = 1 << 20
	// pluginPatience bounds one run of a plugin.
	pluginPatience = 30 * time.Second
	// maxCached bounds the answers that one plugin's are remembered of.
	maxCached = 1024
)

// API versions of the plugins' protocol: they differ in nothing that is used here.
var pluginVersions = []string{"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1"}

// Plugins are the kubelet's credential providers: programs that are given an image
// and answer with a password (https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/).
// It is safe for concurrent use.
type Plugins struct {
	all []*plugin
}

// pluginConfig is a provider in the kubelet's CredentialProviderConfig.
type pluginConfig struct {
	Name                 string    `yaml:"name"`
	MatchImages          []string  `yaml:"matchImages"`
	DefaultCacheDuration string    `yaml:"defaultCacheDuration"`
	APIVersion           string    `yaml:"apiVersion"`
	Args                 []string  `yaml:"args"`
	Env                  []envVar  `yaml:"env"`
	TokenAttributes      yaml.Node `yaml:"tokenAttributes"`
}

type envVar struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

type plugin struct {
	pluginConfig
	program string
	life    time.Duration // of answers that do not say
	running chan struct{} // has room while the program does not run: others wait for its answer

	mu     sync.Mutex // guards cached
	cached map[string]answer
}

type answer struct {
	auth    map[string]authn.AuthConfig // by pattern
	expires time.Time
}

// LoadPlugins reads the kubelet's file (--image-credential-provider-config); dir
// is where its programs are (--image-credential-provider-bin-dir). A provider that
// wants a pod's service account token cannot be run from here: it is left out, and
// logged.
func LoadPlugins(path, dir string, log *slog.Logger) (*Plugins, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read credential providers: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read credential providers: %w", err)
	}
	configs, err := parsePlugins(b)
	if err != nil {
		return nil, fmt.Errorf("read credential providers %s: %w", path, err)
	}
	p := &Plugins{}
	for _, c := range configs {
		if !c.TokenAttributes.IsZero() {
			log.Warn("credential provider is left out: it wants service account tokens, which only the kubelet has", "provider", c.Name)
			continue
		}
		life, _ := time.ParseDuration(c.DefaultCacheDuration) // parsed before
		p.all = append(p.all, &plugin{pluginConfig: c, program: filepath.Join(dir, c.Name), life: life, running: make(chan struct{}, 1), cached: map[string]answer{}})
	}
	return p, nil
}

func parsePlugins(b []byte) ([]pluginConfig, error) {
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxConfigBytes)
	}
	var doc struct {
		Kind      string         `yaml:"kind"`
		Providers []pluginConfig `yaml:"providers"`
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != "CredentialProviderConfig" {
		return nil, fmt.Errorf("its kind is %q, not CredentialProviderConfig", doc.Kind)
	}
	for i, c := range doc.Providers {
		// The kubelet's own rule: the name is a file name.
		if c.Name == "" || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/\\ \x00") {
			return nil, fmt.Errorf("provider %d has no usable name: %q", i, c.Name)
		}
		if !slices.Contains(pluginVersions, c.APIVersion) {
			return nil, fmt.Errorf("provider %s speaks %q, want %s", c.Name, c.APIVersion, pluginVersions[0])
		}
		if d, err := time.ParseDuration(c.DefaultCacheDuration); err != nil || d < 0 {
			return nil, fmt.Errorf("provider %s: defaultCacheDuration %q is no duration", c.Name, c.DefaultCacheDuration)
		}
		for _, pattern := range c.MatchImages {
			if _, err := parsePattern(pattern); err != nil {
				return nil, fmt.Errorf("provider %s: %w", c.Name, err)
			}
		}
	}
	return doc.Providers, nil
}

// Credentials implements [Source]: it runs every plugin for the repository that
// has not answered lately.
func (p *Plugins) Credentials(ctx context.Context, repository string) ([]authn.AuthConfig, error) {
	var all []authn.AuthConfig
	var errs []error
	for _, plugin := range p.all {
		if !matchesAny(plugin.MatchImages, repository) {
			continue
		}
		auth, err := plugin.ask(ctx, repository)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, choose(auth, repository)...)
	}
	return all, errors.Join(errs...)
}

// choose returns the credentials whose pattern the repository matches, the most
// special one first.
func choose(auth map[string]authn.AuthConfig, repository string) []authn.AuthConfig {
	var all []authn.AuthConfig
	keys := slices.SortedFunc(maps.Keys(auth), func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(b, a)) })
	for _, pattern := range keys {
		if matches(pattern, repository) {
			all = append(all, auth[pattern])
		}
	}
	return all
}

func (p *plugin) ask(ctx context.Context, repository string) (map[string]authn.AuthConfig, error) {
	if auth, ok := p.known(repository); ok {
		return auth, nil
	}
	select {
	case p.running <- struct{}{}:
		defer func() { <-p.running }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if auth, ok := p.known(repository); ok {
		return auth, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pluginPatience)
	defer cancel()
	out, err := p.run(ctx, repository)
	if err != nil {
		return nil, fmt.Errorf("run credential provider %s: %w", p.Name, err)
	}
	got, err := parseAnswer(out, p.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("credential provider %s: %w", p.Name, err)
	}
	life := p.life
	if got.life != nil {
		life = *got.life
	}
	if life > 0 {
		p.remember(cacheKey(got.keyType, repository), answer{got.auth, time.Now().Add(life)})
	}
	return got.auth, nil
}

// How far an answer holds.
const (
	keyImage    = "Image"
	keyRegistry = "Registry"
	keyGlobal   = "Global"
)

func cacheKey(keyType, repository string) string {
	host, _, _ := strings.Cut(repository, "/")
	switch keyType {
	case keyGlobal:
		return ""
	case keyRegistry:
		return host
	}
	return repository
}

func (p *plugin) known(repository string) (map[string]authn.AuthConfig, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, kind := range []string{keyImage, keyRegistry, keyGlobal} {
		if a, ok := p.cached[cacheKey(kind, repository)]; ok && time.Now().Before(a.expires) {
			return a.auth, true
		}
	}
	return nil, false
}

func (p *plugin) remember(key string, a answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.cached) >= maxCached {
		clear(p.cached)
	}
	p.cached[key] = a
}

// run runs the program as the kubelet does: the request on stdin, the answer on
// stdout, its environment the daemon's and the provider's.
func (p *plugin) run(ctx context.Context, repository string) ([]byte, error) {
	request, err := json.Marshal(map[string]string{"apiVersion": p.APIVersion, "kind": "CredentialProviderRequest", "image": repository})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, p.program, p.Args...)
	cmd.Env = os.Environ()
	for _, v := range p.Env {
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	cmd.Stdin = bytes.NewReader(request)
	cmd.WaitDelay = time.Second
	stdout, stderr := &limited{max: maxAnswerBytes}, &limited{max: 4 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// limited keeps the first bytes of what is written.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(b []byte) (int, error) {
	l.Buffer.Write(b[:min(len(b), max(0, l.max-l.Len()))])
	return len(b), nil
}

type parsedAnswer struct {
	auth    map[string]authn.AuthConfig
	keyType string
	life    *time.Duration // nil: the provider's default
}

func parseAnswer(b []byte, version string) (*parsedAnswer, error) {
	var doc struct {
		Kind          string `json:"kind"`
		APIVersion    string `json:"apiVersion"`
		CacheKeyType  string `json:"cacheKeyType"`
		CacheDuration string `json:"cacheDuration"`
		Auth          map[string]struct {
			Username string `json:"username"`
			Password string `json:"password"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, errors.New("decode answer: it is no JSON object") // the error would quote it
	}
	if doc.Kind != "CredentialProviderResponse" || doc.APIVersion != version {
		return nil, fmt.Errorf("decode answer: it is %.40q of %.60q, want CredentialProviderResponse of %s", doc.Kind, doc.APIVersion, version)
	}
	if !slices.Contains([]string{keyImage, keyRegistry, keyGlobal}, doc.CacheKeyType) {
		return nil, fmt.Errorf("decode answer: cacheKeyType %.40q is not known", doc.CacheKeyType)
	}
	got := &parsedAnswer{auth: map[string]authn.AuthConfig{}, keyType: doc.CacheKeyType}
	if doc.CacheDuration != "" {
		life, err := time.ParseDuration(doc.CacheDuration)
		if err != nil || life < 0 {
			return nil, fmt.Errorf("decode answer: cacheDuration %.40q is no duration", doc.CacheDuration)
		}
		got.life = &life
	}
	for pattern, auth := range doc.Auth {
		if _, err := parsePattern(pattern); err != nil {
			return nil, fmt.Errorf("decode answer: %w", err)
		}
		got.auth[pattern] = authn.AuthConfig{Username: auth.Username, Password: auth.Password}
	}
	return got, nil
}
