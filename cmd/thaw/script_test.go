package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
	"github.com/thaw-project/thaw/internal/testenv"
)

// TestScript runs testdata/script: what commands say, and their exit codes.
// The conditions root, runtime and fanotify say what a script needs; LAB is
// the host of a lab registry with the image small, RECORDS a directory of measured
// starts: all.json, later.json, modes.json.
func TestScript(t *testing.T) {
	bin := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(bin, "thaw")); err != nil {
		t.Fatal(err)
	}
	records := writeRecords(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			tb, ok := env.T().(testing.TB)
			if !ok {
				tb = t
			}
			layout := filepath.Join(env.WorkDir, "layout")
			if err := os.Mkdir(layout, 0o755); err != nil {
				return err
			}
			writeImage(tb, layout, "small", compressions[0], manySpans())
			s := newLab(tb, layout, "none")
			env.Setenv("LAB", s.Addr())
			env.Setenv("RECORDS", records)
			env.Setenv("THAW", filepath.Join(bin, "thaw"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("THAW_ROOT", filepath.Join(env.WorkDir, "state"))
			env.Setenv(envBeThaw, "1")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "node":
				return canMount(t), nil
			}
			return false, nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// code N COMMAND...: the command ends with exit code N.
			"code": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: code N COMMAND...")
				}
				err := ts.Exec(args[1], args[2:]...)
				got := "0"
				if err != nil {
					got = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if got != args[0] {
					ts.Fatalf("exit code %s, want %s", got, args[0])
				}
			},
		},
	})
}

// writeRecords makes records of starts for scripts.
func writeRecords(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, r := range map[string]*profile.Record{"all": profiletest.Record(1), "later": profiletest.Record(7), "modes": profiletest.Modes(2, profiletest.PythonML)} {
		b, err := profile.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// canMount reports whether testenv lets tests mount lazily.
func canMount(t *testing.T) bool {
	ok := false
	t.Run("can mount", func(t *testing.T) {
		testenv.NeedFanotify(t)
		ok = true
	})
	return ok
}
