package main

import (
	"fmt"
	"time"
)

// A program is one part of the control plane: its flags, and the URL that answers 200 once it is ready.
type program struct {
	name  string
	probe string
	args  []string
}

// ports on the loopback.
type ports struct{ apiserver, etcd, peer, manager, scheduler int }

func plain(port int) string  { return fmt.Sprintf("http://127.0.0.1:%d", port) }
func secure(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }

func etcd(dir string, p ports) program {
	return program{"etcd", plain(p.etcd) + "/health", []string{
		"--data-dir=" + dir, "--log-level=warn",
		"--listen-client-urls=" + plain(p.etcd), "--advertise-client-urls=" + plain(p.etcd),
		"--listen-peer-urls=" + plain(p.peer), "--initial-advertise-peer-urls=" + plain(p.peer), "--initial-cluster=default=" + plain(p.peer),
		// Tests do not outlive the machine.
		"--unsafe-no-fsync",
	}}
}

func apiserver(pki store, p ports) program {
	return program{"apiserver", secure(p.apiserver) + "/readyz", []string{
		fmt.Sprintf("--secure-port=%d", p.apiserver), "--bind-address=127.0.0.1", "--etcd-servers=" + plain(p.etcd),
		"--service-cluster-ip-range=" + serviceRange, "--allow-privileged=true", "--profiling=false",
		// The loopback cannot be an endpoint of a Service: clients in the cluster get there by a rule of their node. Without an address
		// to advertise, a machine that has no default route fails here.
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + pki.certificate("ca"),
		"--tls-cert-file=" + pki.certificate("apiserver"), "--tls-private-key-file=" + pki.key("apiserver"),
		"--kubelet-client-certificate=" + pki.certificate("kubelet-client"), "--kubelet-client-key=" + pki.key("kubelet-client"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki.certificate("service-account"), "--service-account-signing-key-file=" + pki.key("service-account"),
		"--requestheader-client-ca-file=" + pki.certificate("front-proxy-ca"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pki.certificate("front-proxy-client"), "--proxy-client-key-file=" + pki.key("front-proxy-client"),
		// Watches that clients hold open delay its end by up to a minute; with this one by 2 s at most.
		"--shutdown-delay-duration=0s", "--shutdown-send-retry-after=true",
	}}
}

func controllerManager(pki store, kubeconfig string, grace time.Duration, p ports) program {
	return program{"controller-manager", secure(p.manager) + "/healthz", append(client(pki, kubeconfig, p.manager),
		"--use-service-account-credentials=true", "--service-account-private-key-file="+pki.key("service-account"),
		"--root-ca-file="+pki.certificate("ca"),
		"--cluster-signing-cert-file="+pki.certificate("ca"), "--cluster-signing-key-file="+pki.key("ca"),
		"--node-monitor-period=1s", "--node-monitor-grace-period="+grace.String(),
	)}
}

func scheduler(pki store, kubeconfig string, p ports) program {
	return program{"scheduler", secure(p.scheduler) + "/healthz", client(pki, kubeconfig, p.scheduler)}
}

// client has the flags that controller-manager and scheduler share. There is one of each: nobody to elect.
func client(pki store, kubeconfig string, port int) []string {
	return []string{
		fmt.Sprintf("--secure-port=%d", port), "--bind-address=127.0.0.1", "--profiling=false", "--leader-elect=false",
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--tls-cert-file=" + pki.certificate("local"), "--tls-private-key-file=" + pki.key("local"),
		// With the defaults the start waits 6 s for its own rate limit.
		"--kube-api-qps=1000", "--kube-api-burst=2000",
	}
}
