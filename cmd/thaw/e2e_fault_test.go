package main

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// TestFaults: a container starts whatever the registry does, and all of the
// image arrives.
func TestFaults(t *testing.T) {
	t.Parallel()
	layout, want := corpus(t, "nginx")
	for _, fault := range []string{
		"reset=300KB,every=3",
		"reset,every=4",
		"429=1s,first=4",
		"429=1s,every=9",
		"5xx,first=3",
		"5xx=502,every=5",
		"wrong-range=512,every=3",
		"wrong-range=lie:512,first=3",
		"no-ranges",
		"stall=20KB,first=3",
		"token=1s",
		"redirect=500ms",
		"short=1000,every=3",
		"flip=/1000000,first=5",
		"404,match=/referrers/",
		"delay=100ms",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel() // clients wait most of the time
			n, s := newNode(t), newLab(t, layout, "none")
			ref := s.Addr() + "/nginx"
			if fault == "404,match=/referrers/" { // the index then is under the fallback tag
				setFaults(t, s, fault)
			}
			n.pushIndex(ref)
			setFaults(t, s, fault)
			s.ResetStats()
			line := n.timelineOf(ref)
			if line.Index != "registry" {
				t.Errorf("index is %s", line.Index)
			}
			dir := n.mkdir()
			n.thaw("mount", "--wait", ref, dir)
			if len(s.Stats().Faults) == 0 {
				t.Error("no fault was injected")
			}
			if fault == "wrong-range=lie:512,first=3" || fault == "no-ranges" {
				n.sameImage(want, dir)
			}
		})
	}
}

// TestFaultsWithoutIndex has the layers streamed under faults.
func TestFaultsWithoutIndex(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"reset=300KB,every=3", "5xx,every=4", "wrong-range=512,every=3", "no-ranges", "stall=200KB,first=2", "token=1s",
		"redirect=500ms", "short=1000,every=3", "flip=/1000000,first=1"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			n := newSmallImage(t)
			setFaults(t, n.lab, fault)
			dir := n.mkdir()
			n.thaw("mount", n.ref, dir)
			n.sameTree(n.want, dir)
		})
	}
}

// within30 is what a user waits at most when the registry is really gone.
const within30 = 30 * time.Second

// TestRegistryGone: who needs bytes that cannot be had gets an error in time.
func TestRegistryGone(t *testing.T) {
	t.Parallel()
	n, _ := newRunNode(t, `read-timeout = "4s"`)
	layout, _ := corpus(t, "nginx")
	s := newLab(t, layout, "none")
	gone := s.Addr() + "/nginx"
	n.pushIndex(gone)
	dir := n.mkdir()
	n.thaw("mount", "--background=off", gone, dir)
	p := n.launch("--background=off", "--entrypoint", "sh", "-v", n.base+":/host", gone, "-c",
		"echo up; while ! [ -e /host/gone ]; do sleep 0.05; done; cat /usr/bin/perl > /dev/null || exit 44")
	p.prints("up\n")
	s.Close()
	n.write("gone", "")
	inTime := func(what func()) {
		t.Helper()
		watch := testenv.Start()
		what()
		if over, starved := watch.Over(within30); over {
			t.Errorf("took %v, the machine was busy for %v", watch.Took(), starved)
		}
	}
	inTime(func() {
		if r := p.wait(); r.code != 44 || !strings.Contains(r.stderr, "Input/output error") {
			t.Error(r)
		}
	})
	inTime(func() {
		n.within(patience, func() error {
			_, err := sumFile(filepath.Join(dir, "usr/bin/perl"))
			if !errors.Is(err, unix.EIO) {
				t.Errorf("read: %v", err)
			}
			return nil
		})
	})
	inTime(func() {
		if r := n.try("mount", "--wait", gone, n.mkdir()); r.code != 1 {
			t.Error(r)
		}
	})
	inTime(func() {
		if r := n.run("--pull=always", gone); r.code != 125 {
			t.Error(r)
		}
	})
}

// TestNoRegistry: nobody listens, or there is no such image.
func TestNoRegistry(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	for _, c := range []struct{ name, ref, text string }{
		{"nobody listens", "127.0.0.1:1/app", "connection refused"},
		{"no such host", "registry.invalid/app", "registry.invalid"},
		{"no such image", ref + "-none", "404 Not Found"},
		{"no such tag", ref + ":none", "404 Not Found"},
		{"bad reference", "UPPER/case", "UPPER/case"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// How long it takes to be told that there is no such host is not ours; it may be asked twice.
			begun := time.Now()
			_, _ = net.DefaultResolver.LookupHost(t.Context(), "registry.invalid")
			limit := within30 + 2*time.Since(begun)
			watch := testenv.Start()
			n.in(t).refuses(125, c.text, n.runArgs(c.ref)...)
			if over, starved := watch.Over(limit); over {
				t.Errorf("took %v, the machine was busy for %v", watch.Took(), starved)
			}
			if left, _ := filepath.Glob(filepath.Join(n.root, "mounts", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
