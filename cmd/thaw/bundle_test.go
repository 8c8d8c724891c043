package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/thaw-project/thaw/internal/config"
)

// TestScratch: what a killed process left goes, what a running one uses stays.
func TestScratch(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	task := &indexTask{cfg: config.Config{Root: filepath.Join(t.TempDir(), "root")}}
	used, err := task.scratch()
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(task.cfg.Root, fmt.Sprintf(".tmp-layers-%d-1", gone.Process.Pid))
	if err := os.MkdirAll(filepath.Join(left, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := task.scratch()
	if err != nil || other == used {
		t.Fatalf("second directory %s, %v", other, err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a killed process left is there: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("what this process uses: %v", err)
	}
}
