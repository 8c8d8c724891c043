package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/daemon"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/mount/keeper"
	"github.com/thaw-project/thaw/internal/spans"
	"github.com/thaw-project/thaw/internal/systemd"
	"github.com/thaw-project/thaw/internal/trust"
)

const (
	// memoryTarget is the heap that the daemon's garbage collector aims at by
	// default; the buffers of transfers are bounded far below it.
	memoryTarget = 128 << 20
	// minMemory is what the daemon needs to be any good.
	minMemory = 32 << 20
)

type daemonOptions struct {
	mount       string
	background  string
	idleExit    time.Duration
	idleExitSet bool // --idle-exit was given: 0 is a value
	grace       time.Duration
	maxSize     string
	minFree     string
	maxMemory   string
	upgrade     bool
	readTimeout time.Duration
	trust       string
	trustKey    string
	listen      string
	address     string
	metrics     string
	web         string
	webHosts    []string
}

func newDaemonCommand(g *globalOptions) *cobra.Command {
	var opts daemonOptions
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon in the foreground; status, stop and --upgrade talk to a running one",
		Long: `Run the daemon of a state directory in the foreground. Other commands start one
where none runs; it then leaves some time after the last mount.

Ctrl-C ends the daemon; what is mounted stays, and the keeper starts another one
as soon as somebody reads what is not here (under systemd that is left to
systemd). If none comes within --grace such reads fail, until one does. thaw
daemon stop is the orderly end.

While a registry does not give what is read, its readers wait, and have it soon
after it is back. After --read-timeout a read fails with EIO; the next one waits
anew. What is here is read as ever.

--upgrade is for the program of a new version, or the same: the running daemon
becomes this program, with its flags, and then the keeper is replaced. Readers
wait meanwhile. A program that does not work is refused before anything has
changed; should it die at its start, the keeper goes back to the one before. A
program that speaks another version of the keeper's protocol is refused too: end
what is mounted first.

Exit codes: 0 it was stopped or left, or was upgraded, 1 it failed, 3 another
daemon runs.`,
		Example: `  thaw daemon status --json
  thaw daemon --idle-exit=0s --cache-max-size=50GB
  thaw daemon --upgrade`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.idleExitSet = cmd.Flags().Changed("idle-exit")
			if opts.upgrade {
				return runUpgrade(cmd, g)
			}
			return runDaemon(cmd, g, &opts)
		},
	}
	opts.bind(cmd)
	cmd.AddCommand(newDaemonStatusCommand(g), newDaemonStopCommand(g))
	return cmd
}

func (o *daemonOptions) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.trust, "trust", "", "which indexes are taken: any, local (built on this node), signed (with --trust-key, or local) (default any)")
	f.StringVar(&o.trustKey, "trust-key", "", "file of a public key in PEM, as cosign or openssl write it")
	f.StringVar(&o.address, "containerd-address", "", "containerd's own socket, which is asked for what it does not say with a layer (default "+config.DefaultContainerd+")")
	f.StringVar(&o.listen, "containerd-listen", "", "serve containerd as a snapshotter on this socket (default off)")
	complete(cmd, "trust", trust.Any, trust.Local, trust.Signed)
	f.BoolVar(&o.upgrade, "upgrade", false, "have the running daemon go on as this program")
	f.StringVar(&o.mount, "mount", "", "how to mount: auto, fanotify, fuse, eager (default auto)")
	f.StringVar(&o.background, "background", "", "rate of all background hydration in bytes a second, such as 20MB (default no limit)")
	f.DurationVar(&o.idleExit, "idle-exit", 0, "leave when nothing was mounted for so long (default 1m; 0s: never)")
	f.DurationVar(&o.grace, "grace", 0, "how long readers wait for a new daemon after one died (default 30s)")
	f.DurationVar(&o.readTimeout, "read-timeout", 0, "how long a read waits for a registry that is gone before it fails (default 1m)")
	f.StringVar(&o.maxSize, "cache-max-size", "", "evict layers that nothing needs when all take more on disk: 50GB, or a share of the disk as in 50% (default no limit)")
	f.StringVar(&o.minFree, "cache-min-free", "", "what to leave free on the disk: evict layers, then stop background hydration: 10GB, 5% (256 MiB at least)")
	f.StringVar(&o.maxMemory, "max-memory", "", "what the daemon's memory aims at, its buffers included, such as 64MB (default 134MB)")
	f.StringVar(&o.metrics, "metrics", "", "answer Prometheus at this address, such as 127.0.0.1:9798 (default not at all)")
	f.StringVar(&o.web, "web", "", "show starts to browsers at this address, such as 127.0.0.1:9799 (default not at all); one that others reach needs --web-host")
	f.StringSliceVar(&o.webHosts, "web-host", nil, "name by which browsers may call that address, besides localhost; repeatable")
	complete(cmd, "mount", api.ModeAuto, api.ModeFanotify, api.ModeFUSE, api.ModeEager)
}

func runDaemon(cmd *cobra.Command, g *globalOptions, opts *daemonOptions) error {
	cfg, err := g.load()
	if err != nil {
		return err
	}
	log, err := g.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	dc, err := opts.config(g, cfg, log)
	if err != nil {
		return err
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(dc.MaxMemory)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// While all CPUs unpack, a reader's call is answered by the thread that is
		// left: the kernel puts it before them, Go's scheduler after 10 ms.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
	go lockProgram(log)
	if dc.Stored, err = systemd.Inherited(); err != nil {
		return err
	}
	if dc.Manager, err = systemd.New(log); err != nil {
		log.Error("go on without a service manager", "err", err)
	}
	if dc.Manager != nil {
		dc.Restart = nil // the manager does that
	}
	err = daemon.Run(cmd.Context(), dc)
	var upgrade *daemon.Upgrade
	if errors.As(err, &upgrade) {
		return become(upgrade.Executable, log)
	}
	if errors.Is(err, daemon.ErrRunning) {
		if s, serr := api.NewClient(dc.Root).Status(cmd.Context()); serr == nil {
			err = api.Errorf(api.CodeInUse, "thaw daemon stop ends it", "a daemon runs already for %s: pid %d", dc.Root, s.Pid)
		}
		return &exitError{exitRunning, err}
	}
	return err
}

func (o *daemonOptions) config(g *globalOptions, cfg config.Config, log *slog.Logger) (daemon.Config, error) {
	if o.mount != "" {
		cfg.Mount = o.mount
	}
	if o.background != "" {
		cfg.Background = o.background
	}
	if o.idleExitSet {
		cfg.IdleExit = config.Duration(o.idleExit)
	}
	if o.grace != 0 {
		cfg.Grace = config.Duration(o.grace)
	}
	if o.readTimeout < 0 {
		return daemon.Config{}, usageError{fmt.Errorf("--read-timeout %v: want more than nothing", o.readTimeout)}
	}
	if o.readTimeout != 0 {
		cfg.ReadTimeout = config.Duration(o.readTimeout)
	}
	rate, err := config.ParseRate(cfg.Background)
	if err != nil {
		return daemon.Config{}, usageError{err}
	}
	memory, err := o.sizes(&cfg)
	if err != nil {
		return daemon.Config{}, usageError{err}
	}
	cfg.Metrics = cmp.Or(o.metrics, cfg.Metrics)
	if _, _, err := net.SplitHostPort(cfg.Metrics); cfg.Metrics != "" && err != nil {
		return daemon.Config{}, usageError{fmt.Errorf("metrics %q: want HOST:PORT or :PORT", cfg.Metrics)}
	}
	cfg.Web = cmp.Or(o.web, cfg.Web)
	if len(o.webHosts) > 0 {
		cfg.WebHosts = o.webHosts
	}
	if err := checkWeb(&cfg); err != nil {
		return daemon.Config{}, usageError{err}
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return daemon.Config{}, err
	}
	key, err := o.trusted(&cfg)
	if err != nil {
		return daemon.Config{}, err
	}
	exe, err := os.Executable()
	if err != nil {
		return daemon.Config{}, fmt.Errorf("find own program: %w", err)
	}
	restart := slices.Concat([]string{exe}, g.daemonArgs(root), o.args())
	if cfg.Containerd.Listen = cmp.Or(o.listen, cfg.Containerd.Listen); cfg.Containerd.Listen != "" && !filepath.IsAbs(cfg.Containerd.Listen) {
		return daemon.Config{}, usageError{fmt.Errorf("containerd.listen %q: name the socket from the root", cfg.Containerd.Listen)}
	}
	cfg.Containerd.Address = cmp.Or(o.address, cfg.Containerd.Address)
	for name, path := range map[string]string{"containerd.address": cfg.Containerd.Address, "containerd.image-service": cfg.Containerd.ImageService, "credentials.key": cfg.Credentials.Key,
		"credentials.providers": cfg.Credentials.Providers, "credentials.providers-dir": cfg.Credentials.ProvidersDir} {
		if path != "" && !filepath.IsAbs(path) {
			return daemon.Config{}, usageError{fmt.Errorf("%s %q: name it from the root", name, path)}
		}
	}
	return daemon.Config{Root: root, Containerd: daemon.Containerd{Listen: cfg.Containerd.Listen, ImageService: cfg.Containerd.ImageService, Address: cfg.Containerd.Address, Content: cfg.Containerd.Content,
		Mode: cfg.ImageMode},
		Credentials: daemon.Credentials{InMemory: cfg.Credentials.Keep == config.CredentialsMemory, KeyFile: cfg.Credentials.Key,
			Providers: cfg.Credentials.Providers, ProvidersDir: cfg.Credentials.ProvidersDir},
		Restart: restart, Trust: cfg.Trust, TrustKey: key, Version: buildVersion(), Metrics: cfg.Metrics, Web: cfg.Web, WebHosts: cfg.WebHosts, Spans: spansCommand(exe, log), Mode: cfg.Mount, Background: rate,
		MaxSize: cfg.Cache.MaxSize.Of, MinFree: cfg.Cache.MinFree.Of, MaxMemory: memory,
		IdleExit: max(time.Duration(cfg.IdleExit), 0), Grace: time.Duration(cfg.Grace),
		ReadTimeout: time.Duration(cfg.ReadTimeout), Insecure: cfg.Insecure, Mirrors: cfg.Mirrors,
		Keeper: slices.Concat([]string{exe, "keeper", "--root", root, "--grace", time.Duration(cfg.Grace).String(), "--log-format", cmp.Or(g.format, logText), "--"}, restart), Log: log}, nil
}

// checkWeb refuses to show starts to others unless somebody said by what name: what is
// shown has no password.
func checkWeb(cfg *config.Config) error {
	if cfg.Web == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(cfg.Web)
	if err != nil {
		return fmt.Errorf("web %q: want HOST:PORT", cfg.Web)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) && len(cfg.WebHosts) == 0 {
		return fmt.Errorf("web %q: others would see it, without a password; use 127.0.0.1, or say by --web-host (web-hosts) what it may be called", cfg.Web)
	}
	return nil
}

// sizes puts the flags that are sizes over those of the file, and returns the
// bytes of memory.
func (o *daemonOptions) sizes(cfg *config.Config) (memory int64, err error) {
	for _, f := range []struct {
		flag, value string
		to          *config.Size
	}{{"cache-max-size", o.maxSize, &cfg.Cache.MaxSize}, {"cache-min-free", o.minFree, &cfg.Cache.MinFree}, {"max-memory", o.maxMemory, &cfg.MaxMemory}} {
		if f.value == "" {
			continue
		}
		if *f.to, err = config.ParseSize(f.value); err != nil {
			return 0, fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	switch m := cfg.MaxMemory; {
	case m.IsZero():
		return memoryTarget, nil
	case m.Percent > 0 || m.Bytes < minMemory:
		return 0, fmt.Errorf("max-memory %s: want at least %d bytes", m, minMemory)
	}
	return cfg.MaxMemory.Bytes, nil
}

// trusted checks the trust policy, and loads its key.
func (o *daemonOptions) trusted(cfg *config.Config) (*trust.Key, error) {
	cfg.Trust, cfg.TrustKey = cmp.Or(o.trust, cfg.Trust), cmp.Or(o.trustKey, cfg.TrustKey)
	switch cfg.Trust {
	case trust.Any, trust.Local:
		return nil, nil
	case trust.Signed:
		if cfg.TrustKey == "" {
			return nil, usageError{errors.New("trust is signed: --trust-key, or trust-key in the configuration, has to name a public key")}
		}
		return trust.LoadKey(cfg.TrustKey)
	}
	return nil, usageError{fmt.Errorf("trust %q: use any, local or signed", cfg.Trust)}
}

// args are the flags that were given, for a daemon that takes over.
func (o *daemonOptions) args() []string {
	var args []string
	if o.mount != "" {
		args = append(args, "--mount", o.mount)
	}
	if o.background != "" {
		args = append(args, "--background", o.background)
	}
	if o.idleExitSet {
		args = append(args, "--idle-exit", o.idleExit.String())
	}
	if o.grace != 0 {
		args = append(args, "--grace", o.grace.String())
	}
	if o.readTimeout != 0 {
		args = append(args, "--read-timeout", o.readTimeout.String())
	}
	if o.trust != "" {
		args = append(args, "--trust", o.trust)
	}
	if o.address != "" {
		args = append(args, "--containerd-address", o.address)
	}
	if o.listen != "" {
		args = append(args, "--containerd-listen", o.listen)
	}
	if o.trustKey != "" {
		args = append(args, "--trust-key", o.trustKey)
	}
	if o.web != "" {
		args = append(args, "--web", o.web)
	}
	for _, h := range o.webHosts {
		args = append(args, "--web-host", h)
	}
	if o.metrics != "" {
		args = append(args, "--metrics", o.metrics)
	}
	for _, f := range [][2]string{{"--cache-max-size", o.maxSize}, {"--cache-min-free", o.minFree}, {"--max-memory", o.maxMemory}} {
		if f[1] != "" {
			args = append(args, f[0], f[1])
		}
	}
	return args
}

func newKeeperCommand(g *globalOptions) *cobra.Command {
	var grace time.Duration
	var check bool
	cmd := &cobra.Command{
		Use:    "keeper --root DIR -- DAEMON-COMMAND...",
		Short:  "Hold a daemon's descriptors while it is away (started by the daemon)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if check {
				return printJSON(cmd, daemon.Program{Name: buildVersion(), KeeperProtocol: keeper.ProtocolVersion})
			}
			cfg, err := g.load()
			if err != nil {
				return err
			}
			log, err := g.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			keeper.Prepare(log)
			// Not the command's context: a terminal's Ctrl-C is not for the keeper.
			return keeper.Run(context.Background(), keeper.Options{Socket: filepath.Join(cfg.Root, daemon.KeeperSocketName),
				Grace: grace, RestartCommand: args, Program: "/proc/self/exe", Version: buildVersion(), Log: log})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 30*time.Second, "how long readers wait for a daemon")
	cmd.Flags().BoolVar(&check, "check", false, "say what this program is, for a daemon that is to become it")
	return cmd
}

func newDaemonStatusCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "Describe the running daemon: pid, version, mounts, memory", Args: noArgs,
		Long: "Describe the running daemon.\n\nExit codes: 0 it runs, 1 none runs or it does not answer.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, s *api.Status) error {
	fmt.Fprintf(w, "pid %d, version %s, up %s, %s resident, state in %s\n", s.Pid, s.Version,
		units.HumanDuration(time.Since(s.Started)), units.HumanSize(float64(s.MemoryBytes)), s.Root)
	if s.Keeper != nil {
		fmt.Fprintf(w, "keeper: pid %d, version %s, %s resident\n", s.Keeper.Pid, s.Keeper.Version, units.HumanSize(float64(s.Keeper.MemoryBytes)))
	}
	fmt.Fprintf(w, "mount path: %s\n", s.Mode)
	if s.ModeReason != "" {
		fmt.Fprintf(w, "because: %s\n", s.ModeReason)
	}
	for _, text := range s.NotServed {
		fmt.Fprintf(w, "not served: %s\n", text)
	}
	if s.Cache != nil {
		fmt.Fprintln(w, "layers: "+cacheLine(s.Cache))
	}
	if len(s.Mounts) == 0 {
		fmt.Fprintln(w, "nothing is mounted")
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tIMAGE\tHERE\tMODE\tINDEX\tDIRECTORY")
	for _, m := range s.Mounts {
		here := "complete"
		if !m.Stats.Complete {
			here = fmt.Sprintf("%d%%", 100*m.Stats.HereBytes/max(m.Stats.UnpackedBytes, 1))
		}
		if o := m.Stats.Outage; o != nil && o.Until.IsZero() && !m.Stats.Complete {
			here += ", waits since " + units.HumanDuration(time.Since(o.Since)) + ": " + o.Error
		} else if m.Stats.Error != "" {
			here = "failed: " + m.Stats.Error
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", m.ID, m.Image, here, m.Mode, m.Index, m.Dir)
	}
	return tw.Flush()
}

func newDaemonStopCommand(g *globalOptions) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "stop", Short: "End the daemon; refuses while something is mounted", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if errors.Is(err, api.ErrNotRunning) {
				fmt.Fprintln(cmd.ErrOrStderr(), "no daemon is running")
				return nil
			}
			if err != nil {
				return err
			}
			if err := c.Stop(cmd.Context(), force); err != nil {
				return err
			}
			return daemon.WaitGone(cmd.Context(), s.Pid)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "take away what is mounted, and kill containers that use it")
	return cmd
}

// spansCommand is the program that sends traces, if the environment asks for them.
func spansCommand(exe string, log *slog.Logger) []string {
	if !spans.Wanted(os.Getenv) {
		return nil
	}
	beside := filepath.Join(filepath.Dir(exe), spans.Program)
	if _, err := os.Stat(beside); err == nil {
		return []string{beside}
	}
	path, err := exec.LookPath(spans.Program)
	if err != nil {
		log.Error("no traces are sent: make build-otel makes the program for them", "err", err)
		return nil
	}
	return []string{path}
}
