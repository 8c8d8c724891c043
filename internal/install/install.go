// Package install plugs thaw into the containerd of a host, and out of it.
//
// What is done is planned first: a Plan has every file that will differ, with
// its old and its new bytes. Apply writes them one by one, each in the place of
// the old one in one step; before the first, a record says what will be taken
// back, so that an installation that was killed can be undone too. containerd's
// configuration is changed by lines that carry what was there (see tomledit),
// or, where it imports a directory, by a file of our own there.
//
// It restarts nothing that it was not told to, and removes no images: what runs
// on snapshots of thaw has to go first.
package install

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/diff"

	"github.com/thaw-project/thaw/deploy"
	"github.com/thaw-project/thaw/internal/tomledit"
)

// Where things are on a host, below Options.Destdir.
const (
	DefaultConfig = "/etc/containerd/config.toml"
	DefaultSocket = "/run/thaw/snapshotter.sock"

	programPath  = "/usr/local/bin/thaw"
	unitPath     = "/etc/systemd/system/thaw.service"
	unitDropIn   = "/etc/systemd/system/thaw.service.d/containerd.conf"
	dropInName   = "thaw.toml"
	backupSuffix = ".before-thaw"
	recordName   = "install-containerd.json"
)

// Options say where and how.
type Options struct {
	Config  string // containerd's configuration
	Destdir string // what stands for /; "" is the host itself
	Socket  string // where the daemon shall listen for containerd
	Root    string // thaw's state directory
	Default bool   // the snapshotter of whatever names none, too
	Program []byte // the program to install; nil: none
}

// What a Plan does with a file.
const (
	Create = "create"
	Change = "change"
	Remove = "remove"
	Keep   = "keep"
)

// File is one that a plan looked at.
type File struct {
	Path   string `json:"path"`
	Action string `json:"action"`

	old, new []byte // nil: not there
	mode     fs.FileMode
	text     bool // shown in diffs
	config   bool // containerd reads it
}

// Plan is what an installation or its end does.
type Plan struct {
	Config string // containerd's configuration
	Backup string // where the old one will be; "" for none
	Files  []File // in the order in which they are written
	Notes  []string

	opts   Options
	cri    bool
	before map[string]any // what containerd read, nil where it could not be asked
	remove bool           // it is an end
	record string
	left   record
}

// record is what an installation left, for its end.
type record struct {
	Version int      `json:"version"`
	Config  string   `json:"config"`           // containerd's configuration
	DropIn  string   `json:"dropIn,omitempty"` // the file of ours that it imports
	Created []string `json:"created"`          // files that were not there
	Socket  string   `json:"socket"`
}

// GeneratedError is a configuration that is written by another program: changes
// would not last.
type GeneratedError struct{ Path string }

func (e *GeneratedError) Error() string {
	return e.Path + " is written anew by another program at its start, and imports no directory"
}

// at is a path of the host.
func (o *Options) at(path string) string { return filepath.Join("/", o.Destdir, path) }

func (o *Options) defaults() {
	o.Config = cmp.Or(o.Config, DefaultConfig)
	o.Socket = cmp.Or(o.Socket, DefaultSocket)
}

// New plans an installation. The error is a *tomledit.SyntaxError where the
// configuration is no TOML.
func New(ctx context.Context, o Options) (*Plan, error) {
	o.defaults()
	p := &Plan{Config: o.Config, opts: o, record: o.at(filepath.Join(o.Root, recordName))}
	if err := p.left.load(p.record); err != nil {
		return nil, err
	}
	if p.left.Config != "" && p.left.Config != o.Config {
		return nil, fmt.Errorf("thaw is installed for %s: thaw uninstall containerd first", p.left.Config)
	}
	p.left.Version, p.left.Config, p.left.Socket = 1, o.Config, o.Socket
	if o.Program != nil {
		p.add(programPath, o.Program, 0o755)
	}
	address := ""
	if b, err := os.ReadFile(o.at(o.Config)); err == nil {
		if d, err := tomledit.Parse(b); err == nil { // else configure says so
			address = grpcAddress(d)
		}
	}
	unit, dropIn := deploy.Unit, unitExtra(o, address)
	if old, err := os.ReadFile(o.at(unitPath)); err == nil && !bytes.Equal(old, unit) && !slices.Contains(p.left.Created, unitPath) {
		p.Notes = append(p.Notes, unitPath+" is there and not ours: it stays; "+unitDropIn+" is put beside it")
	} else {
		p.add(unitPath, unit, 0o644)
	}
	p.add(unitDropIn, dropIn, 0o644)
	if err := p.configure(ctx); err != nil {
		return nil, err
	}
	for _, f := range p.Files {
		if f.Action == Create && !slices.Contains(p.left.Created, f.Path) {
			p.left.Created = append(p.left.Created, f.Path)
		}
	}
	return p, nil
}

// unitExtra is what the unit needs for containerd, which may listen elsewhere
// than by default.
func unitExtra(o Options, address string) []byte {
	if address != "" {
		address = " --containerd-address " + unitWord(address)
	}
	root := ""
	if o.Root != "" && o.Root != "/var/lib/thaw" {
		root = " --root " + unitWord(o.Root)
	}
	return []byte(strings.NewReplacer("@SOCKET@", unitWord(o.Socket), "@ADDRESS@", address, "@ROOT@", root).Replace(string(deploy.UnitContainerd)))
}

// unitWord is an argument as a command line of systemd's has it.
func unitWord(s string) string {
	s = strings.NewReplacer("%", "%%", "$", "$$", `\`, `\\`, `"`, `\"`).Replace(s)
	if strings.ContainsAny(s, " \t'\"\\;") {
		return `"` + s + `"`
	}
	return s
}

// add plans a file of ours.
func (p *Plan) add(path string, content []byte, mode fs.FileMode) {
	f := File{Path: path, new: content, mode: mode, text: mode&0o111 == 0}
	f.old, _ = os.ReadFile(p.opts.at(path)) // what cannot be read is written
	f.Action = action(f.old, f.new)
	p.Files = append(p.Files, f)
}

func action(old, new []byte) string {
	switch {
	case old == nil && new == nil, old != nil && new != nil && bytes.Equal(old, new):
		return Keep
	case old == nil:
		return Create
	case new == nil:
		return Remove
	}
	return Change
}

// configure plans the change of containerd's configuration.
func (p *Plan) configure(ctx context.Context) error {
	o := &p.opts
	path := o.at(o.Config)
	current, err := readFile(path)
	if err != nil {
		return fmt.Errorf("read containerd's configuration: %w", err)
	}
	old, there := current, current != nil
	if there {
		if old, there, err = tomledit.Undo(current); err != nil {
			return fmt.Errorf("containerd's configuration %s: %w", o.Config, err)
		}
		if !there {
			old = nil
		}
	}
	d, err := tomledit.Parse(old)
	if err != nil {
		return fmt.Errorf("containerd's configuration %s: %w", o.Config, err)
	}
	if old == nil {
		if err := d.Set(newVersion(ctx, o.containerd()), "version"); err != nil {
			return err
		}
	}
	p.cri = withCRI(d)
	if !p.cri {
		p.Notes = append(p.Notes, "its CRI plugin is disabled: nothing is set for Kubernetes")
	}
	s := settings{socket: o.Socket, root: cmp.Or(o.Root, "/var/lib/thaw"), whole: o.Default}
	if dir := dropInDir(d, o.Config); dir != "" {
		return p.dropIn(s, d, current, old, dir)
	}
	if generated(current) {
		return &GeneratedError{o.Config}
	}
	if err := s.edit(d, nil); err != nil {
		return fmt.Errorf("change containerd's configuration %s: %w", o.Config, err)
	}
	b, err := d.Bytes(by)
	if err != nil {
		return fmt.Errorf("change containerd's configuration %s: %w", o.Config, err)
	}
	f := File{Path: o.Config, Action: action(current, b), old: current, new: b, mode: 0o644, text: true, config: true}
	switch foreign := tomledit.Foreign(current, b); {
	case f.Action != Change:
	case !tomledit.Edited(current):
		p.Backup = o.Config + backupSuffix
	case len(foreign) > 0:
		p.Backup = o.Config + backupSuffix
		p.Notes = append(p.Notes, fmt.Sprintf("what was between thaw's marks in %s and is not thaw's is in %s only, such as %q", o.Config, p.Backup, foreign[0]))
	}
	p.Files = append(p.Files, f)
	return nil
}

// dropIn plans a file of ours that the configuration imports.
func (p *Plan) dropIn(s settings, d *tomledit.Document, current, old []byte, dir string) error {
	into, err := tomledit.Parse(nil)
	if err != nil {
		return err
	}
	if err := into.Set(configVersion(d), "version"); err != nil {
		return err
	}
	if err := s.edit(d, into); err != nil {
		return fmt.Errorf("write settings for containerd: %w", err)
	}
	b, err := into.Bytes(by)
	if err != nil {
		return fmt.Errorf("write settings for containerd: %w", err)
	}
	if !bytes.Equal(current, old) { // was changed itself, when it did not import a directory
		p.Files = append(p.Files, File{Path: p.Config, Action: Change, old: current, new: old, text: true, config: true})
	}
	path := filepath.Join(dir, dropInName)
	p.left.DropIn = path
	p.add(path, b, 0o644)
	p.Files[len(p.Files)-1].config = true
	return nil
}

// generated reports whether a program owns the file, as k3s and RKE2 do.
func generated(b []byte) bool {
	for l := range bytes.Lines(b) {
		l = bytes.TrimSpace(l)
		if len(l) > 0 && l[0] != '#' {
			return false
		}
		if bytes.Contains(l, []byte("DO NOT EDIT")) {
			return true
		}
	}
	return false
}

// NewEnd plans the end of an installation. Where there is none the plan changes
// nothing.
func NewEnd(o Options) (*Plan, error) {
	o.defaults()
	p := &Plan{opts: o, remove: true, record: o.at(filepath.Join(o.Root, recordName))}
	if err := p.left.load(p.record); err != nil {
		return nil, err
	}
	if c := p.left.Config; c != "" {
		p.opts.Config = c
	}
	p.Config = p.opts.Config
	current, err := readFile(p.opts.at(p.Config))
	if err != nil {
		return nil, fmt.Errorf("read containerd's configuration: %w", err)
	}
	if p.left.Config == "" {
		if err := p.find(current); err != nil {
			return nil, err
		}
	}
	if current != nil {
		old, there, err := tomledit.Undo(current)
		if err != nil {
			return nil, fmt.Errorf("containerd's configuration %s: %w", p.Config, err)
		}
		if !there {
			old = nil
		}
		if p.left.Config != "" && namesThaw(old) {
			return nil, &MarksError{p.Config}
		}
		p.Files = append(p.Files, File{Path: p.Config, Action: action(current, old), old: current, new: old, text: true, config: true})
		p.dropBackup(old)
	}
	gone := slices.Clone(p.left.Created)
	if p.left.DropIn != "" && !slices.Contains(gone, p.left.DropIn) {
		gone = append(gone, p.left.DropIn)
	}
	for _, path := range gone {
		if path == p.Config {
			continue
		}
		b, err := readFile(p.opts.at(path))
		if err != nil {
			return nil, err
		}
		p.Files = append(p.Files, File{Path: path, Action: action(b, nil), old: b, text: path != programPath, config: path == p.left.DropIn})
	}
	return p, nil
}

// MarksError is a configuration in which what is to be taken back is not marked
// any more: another program has written it anew, such as nvidia-ctk.
type MarksError struct{ Path string }

func (e *MarksError) Error() string {
	return e.Path + " names the snapshotter thaw outside of thaw's marks"
}

// namesThaw reports whether a configuration has the snapshotter.
func namesThaw(b []byte) bool {
	d, err := tomledit.Parse(b)
	if err != nil {
		return false // containerd does not read it either
	}
	_, ok := d.Get("proxy_plugins", Name)
	return ok
}

// find looks for an installation that has no record in the state directory that
// was named: containerd's configuration says which one it has. Where there is no
// record either, what can only be of an installation is taken back, and the rest
// is named.
func (p *Plan) find(current []byte) error {
	d, err := tomledit.Parse(current)
	if err != nil {
		return nil // settings that were broken since are taken back all the same
	}
	edited, dropIn := tomledit.Edited(current), ""
	if dir := dropInDir(d, p.Config); dir != "" {
		path := filepath.Join(dir, dropInName)
		b, err := readFile(p.opts.at(path))
		if err != nil {
			return err
		}
		if into, err := tomledit.Parse(b); err == nil && tomledit.Edited(b) {
			edited, d, dropIn = true, into, path
		}
	}
	if !edited {
		return nil
	}
	text := func(path ...string) string {
		v, _ := d.Get(append([]string{"proxy_plugins", Name}, path...)...)
		s, _ := v.(string)
		return s
	}
	p.opts.Root, p.opts.Socket = cmp.Or(text("exports", "root"), p.opts.Root), cmp.Or(text("address"), p.opts.Socket)
	p.record = p.opts.at(filepath.Join(p.opts.Root, recordName))
	if err := p.left.load(p.record); err != nil || p.left.Config != "" {
		return err
	}
	p.left.DropIn = dropIn
	first, _, _ := bytes.Cut(deploy.UnitContainerd, []byte("\n"))
	if b, _ := readFile(p.opts.at(unitDropIn)); bytes.HasPrefix(b, first) {
		p.left.Created = append(p.left.Created, unitDropIn)
	}
	p.Notes = append(p.Notes, p.record+" is gone, which says what was there before: "+unitPath+" and "+programPath+" stay")
	return nil
}

// dropBackup plans that a backup goes that is what the file will be.
func (p *Plan) dropBackup(old []byte) {
	path := p.Config + backupSuffix
	b, err := readFile(p.opts.at(path))
	switch {
	case err != nil || b == nil:
	case bytes.Equal(b, old):
		p.Files = append(p.Files, File{Path: path, Action: Remove, old: b})
	default:
		p.Notes = append(p.Notes, path+" stays: the configuration was changed by others since")
	}
}

// Changed reports whether there is anything to do.
func (p *Plan) Changed() bool {
	return slices.ContainsFunc(p.Files, func(f File) bool { return f.Action != Keep })
}

// ConfigChanged reports whether containerd will read something else.
func (p *Plan) ConfigChanged() bool {
	return slices.ContainsFunc(p.Files, func(f File) bool { return f.config && f.Action != Keep })
}

// Root is the state directory of the installation.
func (p *Plan) Root() string { return p.opts.Root }

// Socket is where the daemon of the installation listens for containerd.
func (p *Plan) Socket() string { return cmp.Or(p.left.Socket, p.opts.Socket) }

// Diff is what changes in text files, as diff -u has it.
func (p *Plan) Diff() string {
	var b strings.Builder
	for _, f := range p.Files {
		if f.text && f.Action != Keep {
			b.Write(diff.Diff(f.Path, f.old, f.Path, f.new))
		}
	}
	return b.String()
}

// Apply does what was planned. Where containerd does not read its new
// configuration as it should, that is as it was before, and the error says what
// is wrong.
func (p *Plan) Apply(ctx context.Context) error {
	if !p.remove {
		if p.ConfigChanged() {
			var err error
			if p.before, err = p.ask(ctx); err != nil {
				return err
			}
		}
		if err := p.left.save(p.record); err != nil {
			return err
		}
	}
	if err := p.writeAll(func(File) bool { return true }); err != nil {
		return err
	}
	if !p.remove {
		if p.ConfigChanged() {
			if err := p.check(ctx); err != nil {
				return errors.Join(err, p.Revert())
			}
		}
		return nil
	}
	os.Remove(filepath.Dir(p.opts.at(unitDropIn))) // if it is empty
	if err := os.Remove(p.record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeAll writes those that differ, in order, a backup before what it is of.
func (p *Plan) writeAll(chosen func(File) bool) error {
	for _, f := range p.Files {
		if f.Action == Keep || !chosen(f) {
			continue
		}
		if p.Backup != "" && f.Path == p.Config {
			if err := p.write(File{Path: p.Backup, new: f.old, mode: 0o600}); err != nil {
				return err
			}
		}
		if err := p.write(f); err != nil {
			return err
		}
	}
	return nil
}

// Revert puts containerd's configuration back to what it was before Apply.
func (p *Plan) Revert() error {
	var errs []error
	for _, f := range p.Files {
		if f.config && f.Action != Keep {
			errs = append(errs, p.write(File{Path: f.Path, new: f.old, mode: f.mode}))
		}
	}
	if p.Backup != "" {
		errs = append(errs, p.write(File{Path: p.Backup}))
	}
	return errors.Join(errs...)
}

// write puts a file into its place in one step, or takes it away.
func (p *Plan) write(f File) error {
	path := p.opts.at(f.Path)
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if f.new == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	mode := cmp.Or(f.mode, 0o644)
	if st, err := os.Stat(path); err == nil && f.mode&0o111 == 0 {
		mode = st.Mode().Perm()
		if err := sameOwner(tmp, st); err != nil {
			return err
		}
	}
	_, err = tmp.Write(f.new)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Path, err)
	}
	return os.Rename(tmp.Name(), path)
}

// ask has containerd read a configuration; nil where there is no containerd. A
// configuration that is not there is containerd's own.
func (p *Plan) ask(ctx context.Context) (map[string]any, error) {
	program := p.opts.containerd()
	if program == "" {
		return nil, nil
	}
	path := p.opts.at(p.Config)
	args := []string{"--config", path, "config", "dump"}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		args = []string{"config", "default"}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s cannot read %s: %w: %s", program, p.Config, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var seen map[string]any
	if err := toml.Unmarshal(out, &seen); err != nil {
		return nil, fmt.Errorf("%s says of its configuration what is no TOML: %w", program, err)
	}
	return seen, nil
}

// check compares what containerd reads now with what it read before and what it
// was told.
func (p *Plan) check(ctx context.Context) error {
	seen, err := p.ask(ctx)
	if err != nil {
		return fmt.Errorf("changed configuration: %w", err)
	}
	if seen == nil {
		p.Notes = append(p.Notes, "no containerd was found to check its configuration with")
		return nil
	}
	for _, w := range p.expected(seen) {
		if got := lookup(seen, w.path); got != w.value {
			return fmt.Errorf("containerd reads %s as %v and not as %v: is that set in a file that %s imports?", strings.Join(w.path, "."), got, w.value, p.Config)
		}
	}
	if lost := p.lost(p.before, seen, nil); lost != "" {
		return fmt.Errorf("containerd would read %s otherwise than before", lost)
	}
	return nil
}

// lost returns the path of something that containerd read before and does not
// read now, other than what was to change; "" for nothing.
func (p *Plan) lost(before, after map[string]any, path []string) string {
	for _, k := range slices.Sorted(maps.Keys(before)) {
		switch at := append(slices.Clone(path), k); {
		case k == "disable_snapshot_annotations", k == "unpack_config", k == "imports", k == Name, k == "snapshotter" && p.opts.Default:
		default:
			was, table := before[k].(map[string]any)
			is, _ := after[k].(map[string]any)
			if table {
				if l := p.lost(was, is, at); l != "" {
					return l
				}
			} else if !reflect.DeepEqual(before[k], after[k]) && !(after[k] == nil && empty(before[k])) {
				return strings.Join(at, ".")
			}
		}
	}
	return ""
}

// empty reports whether a value is what containerd has for one that is not said.
func empty(v any) bool {
	if list, ok := v.([]any); ok {
		return len(list) == 0
	}
	return v == nil || reflect.ValueOf(v).IsZero()
}

type expectation struct {
	value any
	path  []string
}

// expected is what containerd has to say, by the plugins that it has.
func (p *Plan) expected(seen map[string]any) []expectation {
	want := []expectation{{p.opts.Socket, []string{"proxy_plugins", Name, "address"}}}
	if !p.cri {
		return want
	}
	images, handlers := []string{"plugins", imagesPlugin}, []string{"plugins", runtimePlugin, "containerd"}
	if lookup(seen, images) == nil {
		images = []string{"plugins", criPlugin, "containerd"}
		handlers = images
	}
	want = append(want, expectation{false, slices.Concat(images, []string{"disable_snapshot_annotations"})},
		expectation{Name, slices.Concat(handlers, []string{"runtimes", Name, "snapshotter"})})
	if p.opts.Default {
		want = append(want, expectation{Name, slices.Concat(images, []string{"snapshotter"})})
	}
	return want
}

func lookup(m map[string]any, path []string) any {
	var v any = m
	for _, k := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// containerd returns the program that reads the configuration; "" for none. That
// of k3s or RKE2 is theirs: the host may have an older one, which knows less.
func (o *Options) containerd() string {
	names := []string{"containerd", "/usr/local/bin/containerd", "/usr/bin/containerd"}
	switch {
	case strings.HasPrefix(o.Config, "/var/lib/rancher/k3s/"):
		names = []string{o.at("/var/lib/rancher/k3s/data/current/bin/containerd")}
	case strings.HasPrefix(o.Config, "/var/lib/rancher/rke2/"):
		names = []string{o.at("/var/lib/rancher/rke2/bin/containerd")}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// newVersion is that of a configuration where there is none: all know 2, and
// only containerd 2.x knows 3.
func newVersion(ctx context.Context, program string) int {
	if program == "" {
		return 2
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	// "containerd github.com/containerd/containerd/v2 v2.2.9 REVISION"
	if err == nil && bytes.Contains(out, []byte("containerd/v2 ")) {
		return 3
	}
	return 2
}

// readFile returns nil where there is no file.
func readFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && b == nil {
		b = []byte{}
	}
	return b, err
}

func (r *record) load(path string) error {
	b, err := readFile(path)
	if err != nil || b == nil {
		return err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return fmt.Errorf("read the record of the installation %s: %w", path, err)
	}
	return nil
}

func (r *record) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	p := Plan{opts: Options{}}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return p.write(File{Path: path, new: append(b, '\n'), mode: 0o600})
}
