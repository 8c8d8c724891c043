package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// readAll reads much of a container's image, of which little is here.
func (p *pod) readAll(container string) {
	p.k.Helper()
	p.exec(container, "sh", "-c", "find /usr/share /usr/lib -xdev -type f -exec cat {} + >/dev/null")
}

// TestPodCredentials: a pod's image pull secret, handed with the pull, is what the
// image is read with, also by the next daemon; without the one that the registry wants
// nothing is pulled.
func TestPodCredentials(t *testing.T) {
	const user, password = "deploy", "hunter2-in-a-secret"
	c := newCluster(t, "2", `background = "off"`)
	s, ref := c.lazyNginx()
	setFaults(t, s, "token=2s:"+user+":"+password)
	k := c.kubelet()
	if err := k.pullImage(ref, nil); err == nil {
		t.Fatal("pulled without credentials")
	}
	if err := k.pullImage(ref, &cri.AuthConfig{Username: user, Password: "wrong"}); err == nil {
		t.Fatal("pulled with wrong credentials")
	}
	if err := k.pullImage(ref, &cri.AuthConfig{Username: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	if n := len(c.status().Mounts); n != 1 {
		t.Fatalf("%d mounts: %s", n, c.fallbacks())
	}
	pod := k.runPod("one")
	one := pod.start("server", ref, "PORT=8080")
	c.killThaw(false)
	before := blobBytes(s)
	pod.readAll(one)
	if n := blobBytes(s); n < 1<<20 {
		t.Errorf("%d bytes were fetched after the restart, %d before: nothing was left to read", n, before)
	}
	err := filepath.WalkDir(c.base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(path, c.path("c/")) {
			return nil // of containerd, or gone meanwhile
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(password)) {
			t.Errorf("%s has the password", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(c.root, "credentials", "sealed")); err != nil {
		t.Error(err)
	}
	pod.remove()
	k.removeImage(ref)
}

// TestPodCredentialProvider: what the kubelet's plugin gives is used when what a pull
// brought is no good any more, here because it was kept in memory only.
func TestPodCredentialProvider(t *testing.T) {
	const user, password = "cloud", "token-of-the-hour"
	dir := t.TempDir()
	for name, text := range map[string]string{
		"providers.yaml": `{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"cloud",
			"matchImages":["127.0.0.*:*","127.0.0.1"],"defaultCacheDuration":"0s","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}]}`,
		"cloud": fmt.Sprintf("#!/bin/sh\nsed 's/.*\"image\":\"\\([^/]*\\)[^\"]*\".*/\\1/' | { cat; echo; } | tee -a %s/asked | while read -r host; do "+
			`echo "{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"cacheKeyType\":\"Registry\",\"auth\":{\"$host\":{\"username\":\"%s\",\"password\":\"%s\"}}}"; done`+"\n", dir, user, password),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	layout, _ := corpus(t, "nginx")
	s := newLab(t, layout, "none")
	host := s.Addr()
	// A pattern has its port.
	config, err := os.ReadFile(filepath.Join(dir, "providers.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "providers.yaml"), bytes.ReplaceAll(config, []byte("127.0.0.*:*"), []byte(host)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, "1.7", `background = "off"`, "[credentials]", `keep = "memory"`, fmt.Sprintf("providers = %q", dir+"/providers.yaml"), fmt.Sprintf("providers-dir = %q", dir))
	c.pushIndex(host + "/nginx")
	setFaults(t, s, "token=2s:"+user+":"+password)
	ref := host + "/nginx:latest"
	k := c.kubelet()
	if err := k.pullImage(ref, &cri.AuthConfig{Username: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	if asked, err := os.ReadFile(dir + "/asked"); err == nil {
		t.Errorf("the plugin was asked before it was needed: %q", asked)
	}
	pod := k.runPod("one")
	one := pod.start("server", ref, "PORT=8080")
	c.killThaw(false)
	pod.readAll(one)
	if asked, err := os.ReadFile(dir + "/asked"); err != nil || !strings.HasPrefix(string(asked), host+"\n") {
		t.Errorf("the plugin was asked %q, %v", asked, err)
	}
	pod.remove()
	k.removeImage(ref)
}
