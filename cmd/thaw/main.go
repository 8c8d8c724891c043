// Command thaw starts containers before their images have arrived.
//
// This file parses, wires and maps errors to exit codes; each subcommand is a
// file of its own.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/daemon/api"
)

// version is set by the build (-ldflags -X main.version=...).
var version = ""

// Exit codes that are the same for all commands; run has more.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitRunning     = 3 // of daemon: another one runs
	exitInterrupted = 130
)

// exitError ends the program with a code, and says nothing when err is nil.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program, but for the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) && exit.err == nil {
		return exit.code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "thaw: interrupted")
		return exitInterrupted
	}
	sayError(stderr, err)
	var usage usageError
	switch {
	case exit != nil:
		return exit.code
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitFailed
}

// sayError tells the user what went wrong and, where it is known, the way out.
func sayError(w io.Writer, err error) {
	fmt.Fprintf(w, "thaw: error: %v\n", err)
	var e *api.Error
	if errors.As(err, &e) && e.Hint != "" {
		fmt.Fprintf(w, "thaw: hint: %s\n", e.Hint)
	}
}

// globalOptions are the flags of all commands.
type globalOptions struct {
	root   string
	config string
	level  string
	format string // of logs
}

func newRootCommand() *cobra.Command {
	var g globalOptions
	cmd := &cobra.Command{
		Use:   "thaw",
		Short: "Start containers before their images have arrived",
		Long: `Thaw starts a container before its image has arrived, at native speed, and
never lets it read a wrong byte. Images are used as they are; an index kept
beside an image makes its layers readable at random.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. thaw run passes
on the container's exit code (see thaw run --help).`,
		SilenceErrors: true, SilenceUsage: true,
		Version: buildVersion(),
	}
	cmd.PersistentFlags().StringVar(&g.root, "root", "", "state directory (default /var/lib/thaw; env THAW_ROOT)")
	cmd.PersistentFlags().StringVar(&g.config, "config", os.Getenv("THAW_CONFIG"), "configuration file (default /etc/thaw/config.toml; env THAW_CONFIG)")
	cmd.PersistentFlags().StringVar(&g.level, "log-level", "warn", "what is logged to stderr: debug, info, warn, error")
	cmd.PersistentFlags().StringVar(&g.format, "log-format", cmp.Or(os.Getenv("THAW_LOG_FORMAT"), logText), "how it is logged: text, json (env THAW_LOG_FORMAT)")
	complete(cmd, "log-format", logText, logJSON)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	complete(cmd, "log-level", "debug", "info", "warn", "error")
	group(cmd, newRunCommand(&g), newPullCommand(&g), newMountCommand(&g), newUmountCommand(&g), newIndexCommand(&g), newOptimizeCommand(&g),
		newCacheCommand(&g), newInstallCommand(&g), newUninstallCommand(&g), newTraceCommand(&g), newDaemonCommand(&g), newTopCommand(&g), newWhyCommand(&g), newDoctorCommand(&g), newKeeperCommand(&g), newLabCommand(), newBenchCommand(), newHealthCommand(&g), newReportCommand(&g),
		newMeasureCommand(&g), newRunsCommand(&g), newTimeCommand(&g), newBlameCommand(&g), newCriticalChainCommand(&g), newPlotCommand(&g), newEmitCommand(&g))
	exitCodes(cmd)
	return cmd
}

// load reads the configuration and puts the flags over it.
func (g *globalOptions) load() (config.Config, error) {
	c, err := config.Load(g.config)
	if err != nil {
		return c, usageError{err}
	}
	if g.root != "" {
		c.Root = g.root
	}
	return c, nil
}

func (g *globalOptions) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(g.level)); err != nil {
		return nil, usageError{fmt.Errorf("log level %q: use debug, info, warn or error", g.level)}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch g.format {
	case logText:
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case logJSON:
		opts.ReplaceAttr = asText
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, usageError{fmt.Errorf("log format %q: use text or json", g.format)}
}

// Formats of logs.
const (
	logText = "text"
	logJSON = "json"
)

// asText makes values in JSON what they are in a line of text: an image is its
// reference and not a structure, a duration is not a number of nanoseconds.
func asText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	if s, ok := a.Value.Any().(fmt.Stringer); ok && a.Value.Kind() == slog.KindAny {
		return slog.String(a.Key, s.String())
	}
	return a
}

func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "dev-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return strings.Trim(info.Main.Version, "()")
}
