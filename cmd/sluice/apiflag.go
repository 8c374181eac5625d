package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

// apiFlag is the node that a client command asks.
type apiFlag struct {
	API string `name:"api" default:"http://127.0.0.1:8080" env:"SLUICE_API" placeholder:"URL" help:"HTTP address of any node (${default})."`
}

// with runs f with a client and turns its errors into something that helps.
func (a *apiFlag) with(f func(*client.Client) error) error {
	cl, err := client.New(client.Config{URL: a.API})
	if err != nil {
		return err
	}
	defer cl.Close()
	return a.explain(f(cl))
}

// explain adds the remedy where a node does not answer at all.
func (a *apiFlag) explain(err error) error {
	var problem *client.Error
	var network *net.OpError
	var address *url.Error
	switch {
	case err == nil || errors.As(err, &problem) || errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &network):
		return fmt.Errorf("no node answers at %s (%w): start one with sluice dev, or name another with --api", a.API, network.Err)
	case errors.As(err, &address):
		return fmt.Errorf("%w: is %s the HTTP address of a node?", err, a.API)
	}
	return err
}

// brokersOf are the MQTT addresses of the nodes that can be expected to answer.
func brokersOf(st *api.Status) ([]string, error) {
	var out []string
	for _, n := range st.Nodes {
		if n.MQTT != "" && (n.State == api.NodeAlive || n.State == api.NodeSuspect) {
			out = append(out, n.MQTT)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the cluster names no node that is alive: see sluice status, or give addresses with --broker")
	}
	return out, nil
}
