// CoreDNS with the plugins that coredns.yaml configures. Its own program has all of them, with the clients of three clouds, and takes
// several times as long to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// A query passes through the plugins of its zone in this order, which is CoreDNS's own.
	dnsserver.Directives = []string{"ready", "errors", "template", "hosts", "kubernetes"}
	coremain.Run()
}
