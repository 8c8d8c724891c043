package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
)

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr
    matchImages: ["*.dkr.ecr.*.amazonaws.com", "registry.example:5000/team"]
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - name: PROFILE
        value: prod
  - name: tokens
    matchImages: ["*.dkr.ecr.*.amazonaws.com"]
    defaultCacheDuration: "0"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes:
      serviceAccountTokenAudience: aud
      requireServiceAccount: true
`

// writePlugins makes a directory with the kubelet's configuration and a program
// that notes each of its runs and answers with what is in the file answer.
func writePlugins(t *testing.T) (dir string, p *Plugins) {
	t.Helper()
	dir = t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\necho \"$1 $PROFILE $(cat)\" >>%s/runs\necho a warning >&2\ncat %s/answer\n", dir, dir)
	for name, text := range map[string]string{"config.yaml": kubeletConfig, "ecr": script} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p, err := LoadPlugins(filepath.Join(dir, "config.yaml"), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return dir, p
}

func TestPlugins(t *testing.T) {
	dir, p := writePlugins(t)
	if len(p.all) != 1 {
		t.Fatalf("%d plugins, want the one that can be run from here", len(p.all))
	}
	answer := func(keyType, duration string) {
		t.Helper()
		text := fmt.Sprintf(`{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":%q,"cacheDuration":%q,
			"auth":{"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"wide"},"1.dkr.ecr.eu.amazonaws.com/team":{"username":"AWS","password":"narrow"},"registry.example:5000":{"username":"u","password":"p"}}}`,
			keyType, duration)
		if err := os.WriteFile(filepath.Join(dir, "answer"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// asks returns how often the plugin ran.
	asks := func(repository string, want ...authn.AuthConfig) int {
		t.Helper()
		os.Remove(filepath.Join(dir, "runs"))
		got, err := p.Credentials(t.Context(), repository)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", repository, diff)
		}
		runs, _ := os.ReadFile(filepath.Join(dir, "runs"))
		if len(runs) > 0 {
			args, request, _ := strings.Cut(string(runs), "{")
			var doc map[string]string
			if err := json.Unmarshal([]byte("{"+request), &doc); err != nil || args != "get-credentials prod " {
				t.Errorf("ran as %q: %v", runs, err)
			}
			if diff := cmp.Diff(map[string]string{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": repository}, doc); diff != "" {
				t.Error(diff)
			}
		}
		return strings.Count(string(runs), "get-credentials")
	}
	wide, narrow := authn.AuthConfig{Username: "AWS", Password: "wide"}, authn.AuthConfig{Username: "AWS", Password: "narrow"}
	const team, other = "1.dkr.ecr.eu.amazonaws.com/team/app", "1.dkr.ecr.eu.amazonaws.com/other"
	count := func(want, got int) {
		t.Helper()
		if got != want {
			t.Errorf("the plugin ran %d times, want %d", got, want)
		}
	}
	answer("Image", "0s")
	count(0, asks("docker.io/library/nginx"))
	count(0, asks("registry.example:5000/other/app"))
	count(1, asks(team, narrow, wide))
	count(1, asks(team, narrow, wide))
	count(1, asks("registry.example:5000/team/app", authn.AuthConfig{Username: "u", Password: "p"}))
	answer("Image", "1h")
	count(1, asks(team, narrow, wide))
	count(0, asks(team, narrow, wide))
	count(1, asks(other, wide))
	_, p = writePlugins(t)
	dir = filepath.Dir(p.all[0].program)
	answer("Registry", "") // for the provider's 12 hours
	count(1, asks(team, narrow, wide))
	count(0, asks(other, wide))
	count(1, asks("2.dkr.ecr.eu.amazonaws.com/other", wide))
	_, p = writePlugins(t)
	dir = filepath.Dir(p.all[0].program)
	answer("Global", "1h")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := p.Credentials(t.Context(), team); err != nil || len(got) != 2 {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if runs, _ := os.ReadFile(filepath.Join(dir, "runs")); strings.Count(string(runs), "get-credentials") != 1 {
		t.Errorf("ran for each of those who ask at once: %s", runs)
	}
	count(0, asks("2.dkr.ecr.eu.amazonaws.com/other", wide))
}

// TestPluginsThatFail: what a broken plugin says is in the error, and the next
// source is asked.
func TestPluginsThatFail(t *testing.T) {
	const repository = "1.dkr.ecr.eu.amazonaws.com/a"
	for _, c := range []struct{ script, want string }{
		{"echo no role >&2; exit 3", "exit status 3: no role"},
		{"echo '{\"password\":\"hunter2\"'", "no JSON"},
		{`echo '{"kind":"Other","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}'`, "Other"},
		{`echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"None"}'`, "cacheKeyType"},
	} {
		dir, p := writePlugins(t)
		if err := os.WriteFile(filepath.Join(dir, "ecr"), []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := p.Credentials(t.Context(), repository)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", c.script, err)
		}
		s := open(t, StoreOptions{})
		target := resource{"1.dkr.ecr.eu.amazonaws.com", repository}
		if _, err := (Chain{p, s}).ResolveContext(t.Context(), target); err == nil {
			t.Errorf("%s: nobody knows anything, and that is no error", c.script)
		}
		s.Offer(repository, alice)(true)
		got, err := (Chain{p, s}).ResolveContext(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		if cfg, err := got.Authorization(); err != nil || cfg.Username != alice.Username {
			t.Errorf("%s: got %v, %v", c.script, cfg, err)
		}
	}
}

// TestPluginThatHangs: whoever waits for its answer may give up.
func TestPluginThatHangs(t *testing.T) {
	_, p := writePlugins(t)
	p.all[0].running <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Credentials(ctx, "1.dkr.ecr.eu.amazonaws.com/a"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, repository string
		want                bool
	}{
		{"registry.io", "registry.io/a/b", true},
		{"registry.io", "registry.io:5000/a", false},
		{"registry.io:5000", "registry.io:5000/a", true},
		{"https://registry.io/a", "registry.io/a/b", true},
		{"registry.io/b", "registry.io/a/b", false},
		{"*.registry.io", "x.registry.io/a", true},
		{"*.registry.io", "x.y.registry.io/a", false},
		{"*.registry.io", "registry.io/a", false},
		{"*.*.registry.io", "x.y.registry.io/a", true},
		{"app*.registry.io/a", "app7.registry.io/a/b", true},
		{"docker.io", "docker.io/library/nginx", true},
	} {
		if got := matches(c.pattern, c.repository); got != c.want {
			t.Errorf("%s %s: %v", c.pattern, c.repository, got)
		}
	}
}

func TestParsePlugins(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"kind: Pod", "not CredentialProviderConfig"},
		{"kind: [", "yaml"},
		{strings.ReplaceAll(kubeletConfig, "name: ecr", "name: ../ecr"), "no usable name"},
		{strings.ReplaceAll(kubeletConfig, "k8s.io/v1\n    args", "k8s.io/v9\n    args"), "speaks"},
		{strings.ReplaceAll(kubeletConfig, "12h", "soon"), "no duration"},
		{strings.ReplaceAll(kubeletConfig, "*.dkr", "[.dkr"), "no pattern"},
	} {
		if _, err := parsePlugins([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: %v", c.text, err)
		}
	}
	if all, err := parsePlugins([]byte(`{"kind":"CredentialProviderConfig","providers":[]}`)); err != nil || len(all) != 0 {
		t.Errorf("JSON: %v, %v", all, err)
	}
}

func FuzzParsePlugins(f *testing.F) {
	f.Add([]byte(kubeletConfig))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parsePlugins(b)
		if err != nil {
			return
		}
		for _, c := range all {
			if filepath.Dir(filepath.Join("/bin", c.Name)) != "/bin" {
				t.Errorf("name %q leaves the directory", c.Name)
			}
			matchesAny(c.MatchImages, "a.example/b")
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","cacheDuration":"1h","auth":{"*.a":{"username":"u","password":"p"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseAnswer(b, pluginVersions[0])
		if err != nil {
			return
		}
		if got.life != nil && *got.life < 0 {
			t.Errorf("it lives for %v", *got.life)
		}
		choose(got.auth, "x.a/b")
	})
}
