package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/sources/kubernetes"
)

type measureKubernetesOptions struct {
	sourceOptions
	container string
	ask       cloud.Kubernetes
	watch     time.Duration
}

func newMeasureKubernetesCommand(g *globalOptions) *cobra.Command {
	var opts measureKubernetesOptions
	cmd := &cobra.Command{
		Use:     "k8s FILE... | --namespace N [--selector L]",
		Aliases: []string{"kubernetes"},
		Short:   "Say where starts of Kubernetes pods spent their time, by their status and events",
		Long: `Say where starts of Kubernetes pods spent their time, by their status and events.

A FILE has what kubectl get pods,events -o json (or yaml) prints, in any order and number;
what is about one pod is one start. "-" is standard input. Events are kept for an hour by
most clusters; without them pulls are unknown.

Times are cut to whole seconds by Kubernetes, but for how long a pull took, which is in an
event by the millisecond. What the program does until it is ready Kubernetes does not see:
thaw measure does.

--namespace, --selector and --context ask the cluster itself, through the program thaw-cloud,
as kubectl would. It takes the verb list on pods and events. With --watch it is asked once a
second for so long, which also sees pods that go.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.`,
		Example: `  kubectl get pods,events -n shop -o json | thaw measure k8s -
  thaw measure k8s --namespace shop --selector app=api`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runMeasureKubernetes(cmd, g, &opts, args)
		},
	}
	opts.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&opts.container, "container", "", "whose start is meant, of pods with several (default the pod's default container, else its first)")
	f.StringVarP(&opts.ask.Namespace, "namespace", "n", "", "ask the cluster for pods of this namespace")
	f.StringVarP(&opts.ask.Selector, "selector", "l", "", "with these labels, as kubectl has them")
	f.StringVar(&opts.ask.Context, "context", "", "ask this context's cluster, of the kubeconfig")
	f.StringVar(&opts.ask.Kubeconfig, "kubeconfig", "", "the kubeconfig (default $KUBECONFIG, ~/.kube/config, or a pod's own)")
	f.DurationVar(&opts.watch, "watch", 0, "ask again and again for so long")
	return cmd
}

func runMeasureKubernetes(cmd *cobra.Command, g *globalOptions, opts *measureKubernetesOptions, args []string) error {
	live := opts.ask != cloud.Kubernetes{}
	if opts.watch != 0 && !live || opts.watch < 0 {
		return usageError{errors.New("--watch goes with --namespace, and is a time to come")}
	}
	if err := oneSource(cmd, args, live, "--namespace, --selector or --context"); err != nil {
		return err
	}
	var r kubernetes.Reader
	var err error
	if live {
		opts.ask.WatchMs = opts.watch.Milliseconds()
		sayWatching(cmd, opts.watch)
		err = askCloud(cmd.Context(), cloud.CallKubernetes, opts.ask, r.Read)
	} else {
		err = readDocuments(cmd, &r, args)
	}
	if err != nil {
		return err
	}
	rec, err := r.Record(kubernetes.Options{Container: opts.container})
	if errors.Is(err, kubernetes.ErrNoPods) && live {
		err = errors.New("no such pods are there")
	}
	if err != nil {
		return err
	}
	return opts.finish(cmd, g, rec)
}
