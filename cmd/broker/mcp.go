package main

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/mcp"
)

const mcpHelp = `mcp is a server of the Model Context Protocol (revisions 2026-07-28 and
2025-11-25) on standard input and output, which an AI agent's runtime starts
next to the agent. It has the tools list_access, request_access, access_status,
release_access and call_api, and acts with the identity of this process. The
agent never receives a credential. With call_api it calls the APIs that the
egress rules of its entitlements list: mcp adds the credential to the call,
removes it from the answer, and returns it when mcp ends.

mcp ends when its input ends, or on SIGTERM. Messages about faults go to
standard error.

With --allow-command, the agent also has run_command for these commands. mcp
runs them itself, without a shell, with a credential in files as "broker exec"
does, and removes the credential from their output. An allowed program is
trusted with the credential: many programs run others, such as git with
"-c core.sshCommand=…". Allow no more arguments than the agent needs:

  --allow-command 'git fetch *'   git, fetch and any further arguments
  --allow-command 'make report'   this command alone
  --allow-command psql            psql with any arguments

With --socket, mcp listens on a Unix socket instead. The socket belongs to one
caller: the system's peer credentials must name the user of --peer, and while
the process that connected first is alive, no other process may connect. Give
every agent a user, an identity and a socket of its own.

--print-config prints the configuration that starts mcp with the present
identity: for claude-code, claude-desktop, cursor, vscode, or for other clients.

`

func (a *app) mcpCommand() *cobra.Command {
	var socket peerSocket
	var flags callFlags
	var allowed commandFlags
	var printConfig bool
	c := &cobra.Command{
		Use:   "mcp",
		Short: "Serve the broker to an AI agent over the Model Context Protocol",
		Long:  mcpHelp + exitHelp,
		Example: `  broker mcp
  broker mcp --print-config claude-code > .mcp.json
  broker mcp --allow-command 'git fetch *' --command-dir ~/orders
  broker mcp --socket /run/triage/mcp.sock --peer triage`,
		ValidArgs: mcpClients(),
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case !printConfig && len(args) > 0:
				return usage("mcp takes no arguments; see %s --help", c.CommandPath())
			case printConfig && (len(args) > 1 || len(args) == 1 && mcpConfigs[args[0]] == nil):
				return usage("--print-config takes at most one client: %s", strings.Join(mcpClients(), ", "))
			case printConfig && socket.path != "":
				return usage("--print-config is for standard input and output, not for --socket")
			case socket.path == "" && socket.peer != "":
				return usage("--peer goes with --socket")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if printConfig {
				return a.printMCPConfig(append(args, mcpGeneric)[0], append(flags.args(), allowed.args()...))
			}
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
				log, flush := newLogger(a.err, "text", slog.LevelWarn)
				defer flush()
				calls, err := flags.newCalls(a, client, log)
				if err != nil {
					return err
				}
				cfg := mcp.Config{Version: service.ReadBuild().Version, Logger: log, Calls: calls.calls}
				commands, err := allowed.newCommands(client, calls.warn)
				if err != nil {
					return err
				}
				if commands != nil {
					cfg.Commands = commands
				}
				server := mcp.New(cfg)
				return calls.while(ctx, a, func(ctx context.Context) error {
					if socket.path != "" {
						return socket.serveMCP(ctx, log, func(ctx context.Context, stream io.ReadWriteCloser) error {
							return server.Run(ctx, client, stream, stream)
						})
					}
					return server.Run(ctx, client, io.NopCloser(a.in), keptOpen{a.out})
				})
			})
		},
	}
	c.Flags().StringVar(&socket.path, "socket", "", "listen on this Unix socket instead of standard input and output")
	socket.addPeer(c)
	flags.add(c, a)
	allowed.add(c)
	c.Flags().BoolVar(&printConfig, "print-config", false, "print the configuration for a client, and exit")
	a.client.addPerson(c)
	return c
}

// keptOpen is a writer that this program does not close.
type keptOpen struct{ io.Writer }

func (keptOpen) Close() error { return nil }
