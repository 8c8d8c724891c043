// Package measure sees a container's start from outside: nothing of its image is
// changed, and nothing runs in it.
//
// An [Observer] has the machine's signals: executions and sockets with the kernel's
// own times (package tracefs), and the files that are opened (package opens). A
// [Prober] says when a container answers. What they saw becomes a [profile.Run],
// whose phases package profile derives. The runner ([Run]) starts containers with
// thaw, cold and one after the other, and makes a [profile.Record] of them.
//
// It deliberately uses no eBPF, no profiler inside the program, and no tracing of
// system calls' arguments: those cost more than they say, or are not there.
package measure
