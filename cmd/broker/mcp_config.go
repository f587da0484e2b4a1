package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mcpGeneric is the form of the configuration that most clients read.
const mcpGeneric = "generic"

// An mcpStart is how a client starts this program.
type mcpStart struct {
	Type    string            `json:"type,omitempty"`
	Command string            `json:"command"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env,omitempty"`
}

// An mcpConfig is the file in which a client looks for servers.
type mcpConfig struct {
	file  string // where to put it
	key   string // of its list of servers
	typed bool   // each server states its transport
}

var mcpConfigs = map[string]*mcpConfig{
	"claude-code":    {".mcp.json in the project", "mcpServers", true},
	"claude-desktop": {"claude_desktop_config.json (Settings, Developer, Edit Config)", "mcpServers", false},
	"cursor":         {".cursor/mcp.json in the project, or in your home folder", "mcpServers", false},
	"vscode":         {".vscode/mcp.json in the project", "servers", true},
	mcpGeneric:       {"the client's mcp.json", "mcpServers", false},
}

func mcpClients() []string { return slices.Sorted(maps.Keys(mcpConfigs)) }

// printMCPConfig prints the configuration for a client. It names files with secrets, and
// has no secret itself.
func (a *app) printMCPConfig(client string, flags []string) error {
	cfg, err := a.clientConfig()
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	to := mcpConfigs[client]
	start := mcpStart{Command: program, Args: []string{"mcp"}, Env: map[string]string{}}
	if to.typed {
		start.Type = "stdio"
	}
	if a.client.person {
		start.Args = append(start.Args, "--as-person")
	}
	start.Args = append(start.Args, flags...)
	socket, isFile := strings.CutPrefix(cfg.socket, "unix:")
	if isFile {
		socket = "unix://" + absolute("/"+strings.TrimLeft(socket, "/"))
	} else {
		socket = cfg.socket
	}
	for _, settings := range []map[string]string{a.tokenSettings(), {
		"BROKER_URL": cfg.server, "BROKER_ID": cfg.brokerID, "BROKER_CA": absolute(cfg.ca), "SPIFFE_ENDPOINT_SOCKET": socket,
		"BROKER_CERT": absolute(cfg.cert), "BROKER_KEY": absolute(cfg.key), "BROKER_UPSTREAM_CA": absolute(a.getenv("BROKER_UPSTREAM_CA")),
	}} {
		for name, value := range settings {
			if value != "" {
				start.Env[name] = value
			}
		}
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]any{to.key: map[string]mcpStart{"access-broker": start}}); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "Put this into %s. Other servers there stay next to access-broker.\n", to.file)
	return nil
}

// absolute returns the absolute path of a file, because a client starts this program in
// any folder; empty for an empty path.
func absolute(path string) string {
	if path == "" {
		return ""
	}
	if full, err := filepath.Abs(path); err == nil {
		return full
	}
	return path
}
