// One static program that holds a whole Kubernetes control plane, a kubelet and kubectl, for tests on machines that have none of them.
// The first argument says which program it is to be; `up` runs a control plane out of them.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserverapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	managerapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	schedulerapp "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

const usage = `usage: kubernetes PROGRAM [flags]
  up          run a control plane (see: kubernetes up --help)
  kubeconfig  sign a client certificate and write a kubeconfig with it (see: kubernetes kubeconfig --help)
  etcd, apiserver, controller-manager, scheduler, kubelet, kubectl
              the program itself, with its own flags`

func main() {
	if len(os.Args) < 2 {
		fail(usage)
	}
	program := os.Args[1]
	// Each program shall see its own flags only.
	os.Args = os.Args[1:]
	switch program {
	case "up":
		check(up(os.Args[1:]))
	case "kubeconfig":
		check(kubeconfig(os.Args[1:]))
	case "etcd":
		etcdmain.Main(os.Args)
	case "apiserver":
		run(apiserverapp.NewAPIServerCommand())
	case "controller-manager":
		run(managerapp.NewControllerManagerCommand())
	case "scheduler":
		run(schedulerapp.NewSchedulerCommand())
	case "kubelet":
		run(kubelet())
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		fail(usage)
	}
}

func run(command *cobra.Command) { os.Exit(cli.Run(command)) }

func fail(why string) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(2)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
