//go:build tools

// kubectl, built where PyPI has no ready binary of it.
package main

import _ "k8s.io/kubernetes/cmd/kubectl"
