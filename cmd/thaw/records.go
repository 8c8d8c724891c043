package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/budget"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profilestore"
)

// profileStore is where measured starts are kept on this node.
func (g *globalOptions) profileStore(cmd *cobra.Command) (*profilestore.Store, error) {
	cfg, err := g.load()
	if err != nil {
		return nil, err
	}
	log, err := g.logger(cmd.ErrOrStderr())
	if err != nil {
		return nil, err
	}
	return profilestore.New(filepath.Join(cfg.Root, profilestore.FileName), profilestore.Options{Log: log}), nil
}

// record reads what a command was given for a measurement: an ID of the store, the
// beginning of one, "last", or a file, "-" for stdin.
func (g *globalOptions) record(cmd *cobra.Command, name string) (*profile.Record, error) {
	if isRecordFile(name) {
		return readRecordFile(cmd, name)
	}
	s, err := g.profileStore(cmd)
	if err != nil {
		return nil, err
	}
	head, err := s.Resolve(cmd.Context(), name)
	if err != nil {
		return nil, recordError(err)
	}
	r, err := s.Get(cmd.Context(), head.ID)
	return r, recordError(err)
}

func isRecordFile(name string) bool {
	return name == "-" || strings.HasSuffix(name, ".json") || strings.ContainsRune(name, filepath.Separator)
}

func readRecordFile(cmd *cobra.Command, name string) (*profile.Record, error) {
	if name == "-" {
		return profile.DecodeFrom(cmd.InOrStdin())
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	defer f.Close()
	r, err := profile.DecodeFrom(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// recordError adds the way out to errors of the store.
func recordError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, profilestore.ErrNotFound):
		return api.Errorf("", "thaw runs ls lists them; thaw measure makes them", "%v", err)
	case errors.Is(err, fs.ErrPermission):
		return api.Errorf("", "use sudo, or --root with a directory of yours", "%v", err)
	}
	return err
}

// splitSubject divides RUN@SUBJECT, unless there is a file of the whole name.
func splitSubject(name string) (run, subject string) {
	at := strings.LastIndexByte(name, '@')
	if at < 0 {
		return name, ""
	}
	if _, err := os.Stat(name); err == nil && isRecordFile(name) {
		return name, ""
	}
	return name[:at], name[at+1:]
}

// subjectOf returns a subject of a record by its name, or by what only one name begins
// with.
func subjectOf(r *profile.Record, name string) (*profile.Subject, error) {
	if s := r.Subject(name); s != nil {
		return s, nil
	}
	var found []*profile.Subject
	var names []string
	for i := range r.Subjects {
		s := &r.Subjects[i]
		names = append(names, fmt.Sprintf("%q", s.Name))
		if strings.HasPrefix(s.Name, name) {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return nil, usageError{fmt.Errorf("record %s: subject %q: it has %s", r.ID, name, cmp.Or(strings.Join(names, ", "), "none"))}
	}
	return found[0], nil
}

// subjectsOf are those that a command is about: the one that was named, or all.
func subjectsOf(r *profile.Record, name string) ([]*profile.Subject, error) {
	if name != "" {
		s, err := subjectOf(r, name)
		return []*profile.Subject{s}, err
	}
	var all []*profile.Subject
	for i := range r.Subjects {
		all = append(all, &r.Subjects[i])
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("record %s: nothing was measured in it", r.ID)
	}
	return all, nil
}

// recordNames completes IDs of records in the shell, with files after them.
func (g *globalOptions) recordNames(most int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, err := g.profileStore(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		heads, err := s.List(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		var names []string
		if len(heads) > 0 {
			names = append(names, profilestore.Last+"\tthe newest that was measured")
		}
		for _, h := range heads {
			names = append(names, h.ID+"\t"+headText(&h))
		}
		names = slices.DeleteFunc(names, func(s string) bool { return !strings.HasPrefix(s, word) })
		return names, cobra.ShellCompDirectiveDefault
	}
}

// headText says in a few words what a record is of.
func headText(h *profilestore.Head) string {
	if h.Error != "" {
		return h.Error
	}
	var parts []string
	if h.Name != "" {
		parts = append(parts, h.Name+":")
	}
	for i, s := range h.Subjects {
		if i == 3 && len(h.Subjects) > 4 {
			parts = append(parts, fmt.Sprintf("and %d more", len(h.Subjects)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s (%s, %s)", s.Name, runCount(s.Runs), shortMsOr(s.P50Ms)))
	}
	return strings.Join(parts, " ")
}

// shortMs is a time as people read it: 12.3ms, 480ms, 2.105s, 3min 20s.
func shortMs(ms float64) string {
	switch abs := max(ms, -ms); {
	case abs < 99.95:
		return fmt.Sprintf("%.1fms", ms)
	case abs < 999.5:
		return fmt.Sprintf("%.0fms", ms)
	case abs < 99_999.5:
		return fmt.Sprintf("%.3fs", ms/1000)
	case ms > 0:
		return fmt.Sprintf("%dmin %ds", int(ms/60_000), int(ms/1000)%60)
	}
	return fmt.Sprintf("%.0fs", ms/1000)
}

func shortMsOr(ms *float64) string {
	if ms == nil {
		return "?"
	}
	return shortMs(*ms)
}

// amount is a value of a measure with its unit.
func amount(v float64, unit string) string {
	if unit == profile.UnitMs {
		return shortMs(v)
	}
	return budget.Amount(v, unit)
}

// signed is amount with a sign.
func signed(v float64, unit string) string {
	if v > 0 {
		return "+" + amount(v, unit)
	}
	return amount(v, unit)
}

// putRecord keeps a record in the store and says what had to go for it.
func (g *globalOptions) putRecord(ctx context.Context, cmd *cobra.Command, r *profile.Record) error {
	s, err := g.profileStore(cmd)
	if err != nil {
		return err
	}
	evicted, err := s.Put(ctx, r)
	if err != nil {
		return recordError(err)
	}
	if len(evicted) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "thaw: removed the oldest records that are not pinned: %s\n", strings.Join(evicted, ", "))
	}
	return nil
}

func runCount(n int) string {
	if n == 1 {
		return "1 run"
	}
	return fmt.Sprintf("%d runs", n)
}
