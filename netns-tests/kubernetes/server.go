// The mode `server`: etcd, API server, controller-manager and scheduler in one process.
//
// It saves the memory of three processes and their start. What a real control plane decides is decided by the same code
// with the same flags; only etcd skips fsync, since a lab's data need not outlive the machine.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// readySentence is what the lab looks for in the log.
const readySentence = "API server is ready"

// readyPoll is how often the API server is asked whether the programs that need it may start.
const readyPoll = 50 * time.Millisecond

// serverConfig is the file whose path is the only argument of `server`.
type serverConfig struct {
	// EtcdDirectory is kept over a restart.
	EtcdDirectory string `json:"etcdDirectory"`
	// EtcdClientURL and EtcdPeerURL are where etcd listens.
	EtcdClientURL string `json:"etcdClientURL"`
	EtcdPeerURL   string `json:"etcdPeerURL"`
	// ServerURL is the API server's address as its certificate has it, CertificateAuthority the file that vouches for it.
	ServerURL            string `json:"serverURL"`
	CertificateAuthority string `json:"certificateAuthority"`
	// The programs' own flags.
	APIServer         []string `json:"apiServer"`
	ControllerManager []string `json:"controllerManager"`
	Scheduler         []string `json:"scheduler"`
}

func runServer() {
	if len(os.Args) != 2 {
		fail("server takes one argument, the path of its configuration")
	}
	config := readConfig(os.Args[1])
	// All programs set up logging, but one process has only one log.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged

	startEtcd(config)
	// Made before the API server's command: it sets the default of a feature, which is refused once flags have it.
	controllers := controllermanager.NewControllerManagerCommand()
	controllers.SetArgs(config.ControllerManager)
	api := apiserver.NewAPIServerCommand()
	api.SetArgs(config.APIServer)

	ended := make(chan string)
	go func() { ended <- fmt.Sprintf("the API server ended with code %d", cli.Run(api)) }()
	go func() {
		waitReady(config)
		fmt.Fprintln(os.Stderr, readySentence)
		go func() { ended <- fmt.Sprintf("the scheduler ended: %v", runScheduler(config.Scheduler)) }()
		ended <- fmt.Sprintf("the controller-manager ended with code %d", cli.Run(controllers))
	}()
	fail("%s", <-ended)
}

func readConfig(path string) serverConfig {
	text, err := os.ReadFile(path)
	if err != nil {
		fail("the configuration cannot be read: %v", err)
	}
	var config serverConfig
	if err := json.Unmarshal(text, &config); err != nil {
		fail("the configuration %s is not understood: %v", path, err)
	}
	return config
}

func startEtcd(config serverConfig) {
	etcd := embed.NewConfig()
	etcd.Dir = config.EtcdDirectory
	client, peer := parseURL(config.EtcdClientURL), parseURL(config.EtcdPeerURL)
	etcd.ListenClientUrls, etcd.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	etcd.ListenPeerUrls, etcd.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	etcd.InitialCluster = etcd.InitialClusterFromName(etcd.Name)
	etcd.UnsafeNoFsync = true
	etcd.LogLevel = "error"
	server, err := embed.StartEtcd(etcd)
	if err != nil {
		fail("etcd does not start on %s: %v", config.EtcdClientURL, err)
	}
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		fail("etcd failed: %v", err)
	}
}

func parseURL(text string) url.URL {
	parsed, err := url.Parse(text)
	if err != nil {
		fail("%q is no URL: %v", text, err)
	}
	return *parsed
}

// waitReady returns once the API server says that it is ready.
func waitReady(config serverConfig) {
	authority, err := os.ReadFile(config.CertificateAuthority)
	if err != nil {
		fail("the certificate authority cannot be read: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		fail("%s has no certificate", config.CertificateAuthority)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	for {
		response, err := client.Get(config.ServerURL + "/readyz")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(readyPoll)
	}
}

// runScheduler leaves out the scheduler's own command, whose flags collide with those of the other programs.
func runScheduler(arguments []string) error {
	options := scheduleroptions.NewOptions()
	flags := pflag.NewFlagSet("scheduler", pflag.ContinueOnError)
	flags.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, set := range options.Flags.FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	ctx := context.Background()
	config, instance, err := scheduler.Setup(ctx, options)
	if err != nil {
		return err
	}
	return scheduler.Run(ctx, config, instance)
}
