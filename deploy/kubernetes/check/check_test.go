// Package check compares the manifests for Kubernetes with its API. It is a
// module of its own, so that thaw does not depend on Kubernetes.
package check

import (
	"errors"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// objects are the kinds that the manifests may have.
var objects = map[string]func() any{
	"Namespace":          func() any { return new(corev1.Namespace) },
	"ServiceAccount":     func() any { return new(corev1.ServiceAccount) },
	"Role":               func() any { return new(rbacv1.Role) },
	"RoleBinding":        func() any { return new(rbacv1.RoleBinding) },
	"ClusterRole":        func() any { return new(rbacv1.ClusterRole) },
	"ClusterRoleBinding": func() any { return new(rbacv1.ClusterRoleBinding) },
	"DaemonSet":          func() any { return new(appsv1.DaemonSet) },
	"RuntimeClass":       func() any { return new(nodev1.RuntimeClass) },
}

// build makes the objects of a directory, each without anything that Kubernetes does not know.
func build(t *testing.T, dir string) map[string]any {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	for _, r := range built.Resources() {
		b, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		make, ok := objects[r.GetKind()]
		if !ok {
			t.Errorf("kind %s is not known here", r.GetKind())
			continue
		}
		o := make()
		unknown, err := json.UnmarshalStrict(b, o) // with regard to case, as the API server
		if err := errors.Join(append(unknown, err)...); err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
		}
		all[r.GetKind()] = o
	}
	return all
}

func TestManifests(t *testing.T) {
	for _, c := range []struct{ dir, arg string }{
		{"base", ""},
		{"default", "--default"},
		{"k3s", "--containerd-config=/var/lib/rancher/k3s/agent/etc/containerd/config.toml"},
		{"rke2", "--containerd-config=/var/lib/rancher/rke2/agent/etc/containerd/config.toml"},
	} {
		t.Run(c.dir, func(t *testing.T) {
			all := build(t, "../"+c.dir)
			if len(all) != len(objects) {
				t.Fatalf("%d kinds of objects, want %d", len(all), len(objects))
			}
			set := all["DaemonSet"].(*appsv1.DaemonSet)
			pod := set.Spec.Template.Spec
			args := pod.Containers[0].Args
			if !slices.Contains(args, "--pod") || c.arg != "" && args[len(args)-1] != c.arg || c.arg == "" && len(args) != 4 {
				t.Errorf("arguments %q", args)
			}
			if !pod.HostPID || !*pod.Containers[0].SecurityContext.Privileged {
				t.Error("the pod cannot enter its node")
			}
			class := all["RuntimeClass"].(*nodev1.RuntimeClass)
			for key, value := range class.Scheduling.NodeSelector {
				if pod.NodeSelector[key] != value {
					t.Errorf("pods of the class go to nodes with %s=%s, the DaemonSet's to %v", key, value, pod.NodeSelector)
				}
			}
			for key, value := range set.Spec.Selector.MatchLabels {
				if set.Spec.Template.Labels[key] != value {
					t.Errorf("the set does not select its pods by %s=%s", key, value)
				}
			}
			env := map[string]string{}
			for _, e := range pod.Containers[0].Env {
				env[e.Name] = e.Value
			}
			rule := all["Role"].(*rbacv1.Role).Rules[0]
			if env["DAEMONSET"] != set.Name || !slices.Contains(rule.ResourceNames, set.Name) {
				t.Errorf("the set %s is called %q in its pods and %q in its role", set.Name, env["DAEMONSET"], rule.ResourceNames)
			}
			if image := pod.Containers[0].Image; !strings.Contains(image, "/thaw:") {
				t.Errorf("image %s", image)
			}
		})
	}
}
