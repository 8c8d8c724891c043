// Package health computes when an orchestrator notices that a container is ready,
// and when it gives up on one that is not, from the configuration of its health
// checks alone.
//
// Three kinds of checks are known: the container check of Docker and ECS
// ([Container]), the target group of a load balancer ([Target]), and the probes of
// Kubernetes ([Pod]). Each has its times in closed form, for one readiness time and
// for a [Ready] distribution of them; the tests compare them with simulations of the
// events. [Parse] reads the checks out of the files in which people keep them, and
// [Tune] proposes better ones.
//
// All times begin when the container starts. It does not run, measure or contact
// anything.
package health
