package main

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCredentialsLeakNowhere: a run with a password, tokens and signed URLs
// leaves none of them behind: not in the state directory (logs at debug level
// included), not in what commands print, not in a process's arguments or
// environment, with a registry that is well and with one that is not.
func TestCredentialsLeakNowhere(t *testing.T) {
	t.Parallel() // it waits most of the time, until a registry without a valid token is given up
	n := newSmallImage(t)
	const user, password = "operator", "hunter2-in-the-clear"
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config := n.path(".docker")
	if err := os.Mkdir(config, 0o700); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimSuffix(n.ref, "/small")
	file := filepath.Join(config, "config.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, basic), 0o600); err != nil {
		t.Fatal(err)
	}
	secrets := []string{password, basic, "Bearer ", "signature="}
	looked := 0
	look := func(where, text string) {
		looked++
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %q", where, secret)
			}
		}
	}
	command := func(args ...string) result {
		p := n.start(append([]string{"--log-level=debug"}, args...)...)
		r := p.wait()
		look("output of "+strings.Join(args, " "), r.String())
		return r
	}
	d := n.start("--log-level=debug", "daemon") // in place of one that a command starts, which logs less
	n.daemon()
	setFaults(t, n.lab, "token=1s:"+user+":"+password, "redirect=1m")
	for _, r := range []result{command("index", "build", "--push", n.ref), command("mount", "--wait", n.ref, n.mkdir())} {
		if r.code != 0 {
			t.Fatal(r)
		}
	}
	setFaults(t, n.lab, "token=1s:"+user+":"+password, "redirect=1m", "5xx=503,first=3,match=/blobs/")
	command("pull", "--index=ignore", n.ref)
	setFaults(t, n.lab, "token=1s:somebody:else", "redirect=1m")
	n.eventually("the last token has expired", func() bool {
		return command("pull", "--pull=always", "--index=ignore", n.ref).code != 0
	})
	look("the daemon's log", d.err.String())
	if !strings.Contains(d.err.String(), "registry request") {
		t.Errorf("the daemon does not log all: %s", d.err)
	}
	for _, pid := range n.pids("") {
		for _, name := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err == nil {
				look(fmt.Sprintf("%s of %d", name, pid), string(b))
			}
		}
	}
	err := filepath.WalkDir(n.base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == file || strings.HasPrefix(path, n.layout) {
			return err
		}
		b, err := os.ReadFile(path)
		look(path, string(b))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if looked < 10 {
		t.Errorf("looked in %d places", looked)
	}
}
