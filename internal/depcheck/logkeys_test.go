package depcheck

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logMethods are slog's, with the number of arguments before the keys.
var logMethods = map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2, "Log": 3}

// otherWords are names for what has another one already.
var otherWords = map[string]string{"error": "err", "e": "err", "ref": "image", "img": "image", "reference": "image", "blob": "layer", "mount_id": "mount",
	"duration": "took", "elapsed": "took", "filename": "path", "addr": "address", "size": "bytes", "why": "reason", "n": "count"}

var keyForm = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

var logKey = regexp.MustCompile("(?m)^\\| ((?:`[a-z_]+`(?:, )?)+) \\| ")

// TestLogKeys: what is logged has the same name everywhere, and those names that
// docs/observability.md explains are in use.
func TestLogKeys(t *testing.T) {
	doc, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "\n## Logs\n")
	if !ok {
		t.Fatal("docs/observability.md says nothing of logs")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	known := map[string]bool{} // whether it is used
	for _, row := range logKey.FindAllStringSubmatch(section, -1) {
		for key := range strings.SplitSeq(row[1], ", ") {
			known[strings.Trim(key, "`")] = false
		}
	}
	for _, root := range []string{"../../internal", "../../cmd/thaw"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files := token.NewFileSet()
			f, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				for _, key := range loggedKeys(n) {
					if better := otherWords[key]; better != "" || !keyForm.MatchString(key) {
						t.Errorf("%s: log key %q: use %q, or letters as in other_things", files.Position(n.Pos()), key, better)
					}
					known[key] = true
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for key, used := range known {
		if !used {
			t.Errorf("docs/observability.md has log key %q, which is not used", key)
		}
	}
}

// loggedKeys are the keys of a call of a logger: its arguments at every other place, as
// far as they stand there as words.
func loggedKeys(n ast.Node) []string {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return nil
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	skip, ok := logMethods[method.Sel.Name]
	if !ok || !slices.Contains([]string{"log", "Log", "slog"}, lastWord(method.X)) {
		return nil
	}
	var keys []string
	for i := skip; i < len(call.Args); i += 2 {
		if lit, ok := call.Args[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if key, err := strconv.Unquote(lit.Value); err == nil {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// lastWord is the name at the end of an expression such as d.opts.Log.
func lastWord(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
