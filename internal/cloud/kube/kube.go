// Package kube answers calls of package cloud with Kubernetes' client, in the program
// thaw-cloud.
//
// Which cluster and who we are is the client's business: --kubeconfig, KUBECONFIG,
// ~/.kube/config, or a pod's service account.
package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	kerrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/thaw-project/thaw/internal/cloud"
)

const (
	page     = 500             // objects asked for at once
	interval = 1 * time.Second // between two looks: times of pods have no more
)

// list is what kubectl prints of objects of several kinds.
type list struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Items      []any  `json:"items"`
}

// asker asks for a namespace's pods and their events.
type asker struct {
	args   cloud.Kubernetes
	client *rest.RESTClient
	params runtime.ParameterCodec
	send   func(any) error
}

// Pods is the handler of [cloud.CallKubernetes].
func Pods(ctx context.Context, raw json.RawMessage, send func(any) error) error {
	a := asker{send: send}
	if err := json.Unmarshal(raw, &a.args); err != nil {
		return fmt.Errorf("read arguments: %w", err)
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.args.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.args.Context})
	c, err := loader.ClientConfig()
	if err != nil {
		return &cloud.Error{Message: fmt.Sprintf("load the configuration of kubectl: %v", err), Hint: "use --kubeconfig and --context, or set KUBECONFIG"}
	}
	if a.args.Namespace == "" {
		if a.args.Namespace, _, err = loader.Namespace(); err != nil {
			return fmt.Errorf("default namespace: %w", err)
		}
	}
	// Not the clientset and its scheme: they have every kind of every version.
	scheme := runtime.NewScheme()
	if err := core.AddToScheme(scheme); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	a.params = runtime.NewParameterCodec(scheme)
	c.APIPath, c.GroupVersion, c.NegotiatedSerializer = "/api", &core.SchemeGroupVersion, serializer.NewCodecFactory(scheme).WithoutConversion()
	if a.client, err = rest.RESTClientFor(c); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	until := time.Now().Add(time.Duration(a.args.WatchMs) * time.Millisecond)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := a.look(ctx); err != nil {
			return err
		}
		if !time.Now().Before(until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// look sends all pods, and all events about them.
func (a *asker) look(ctx context.Context) error {
	uids := map[types.UID]bool{}
	err := a.pages(ctx, "pods", meta.ListOptions{LabelSelector: a.args.Selector}, &core.PodList{}, func(o runtime.Object) (items []any) {
		for _, p := range o.(*core.PodList).Items {
			p.APIVersion, p.Kind, p.ManagedFields = "v1", "Pod", nil
			uids[p.UID] = true
			items = append(items, p)
		}
		return items
	})
	if err != nil || len(uids) == 0 {
		return err
	}
	return a.pages(ctx, "events", meta.ListOptions{FieldSelector: "involvedObject.kind=Pod"}, &core.EventList{}, func(o runtime.Object) (items []any) {
		for _, e := range o.(*core.EventList).Items {
			if uids[e.InvolvedObject.UID] {
				e.APIVersion, e.Kind, e.ManagedFields = "v1", "Event", nil
				items = append(items, e)
			}
		}
		return items
	})
}

// pages asks for all objects of a kind and sends those of each page that items picks
// of it.
func (a *asker) pages(ctx context.Context, resource string, opts meta.ListOptions, kind runtime.Object, items func(runtime.Object) []any) error {
	opts.Limit = page
	for {
		o := kind.DeepCopyObject()
		if err := a.client.Get().Namespace(a.args.Namespace).Resource(resource).VersionedParams(&opts, a.params).Do(ctx).Into(o); err != nil {
			return a.explain(err, resource)
		}
		if some := items(o); len(some) > 0 {
			if err := a.send(list{APIVersion: "v1", Kind: "List", Items: some}); err != nil {
				return err
			}
		}
		if opts.Continue = o.(meta.ListInterface).GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

// explain says what is to be done about an error.
func (a *asker) explain(err error, resource string) error {
	var status kerrors.APIStatus
	e := &cloud.Error{Message: fmt.Sprintf("list %s in the namespace %s: %v", resource, cmp.Or(a.args.Namespace, "default"), err)}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case kerrors.IsForbidden(err):
		e.Hint = fmt.Sprintf("a Role in the namespace %s needs the verb list on %s (apiGroups \"\"), bound to who asks: kubectl auth can-i list %s -n %s", a.args.Namespace, resource, resource, a.args.Namespace)
	case kerrors.IsUnauthorized(err):
		e.Hint = "the cluster does not know these credentials, or not any more: does kubectl get pods work?"
	case kerrors.IsTooManyRequests(err):
		e.Hint = "the API server is too busy: ask again later"
	case !errors.As(err, &status):
		e.Hint = "can the API server be reached? kubectl cluster-info says where it is"
	}
	return e
}
