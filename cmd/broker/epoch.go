package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
)

func (a *app) newEpochCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "new-epoch --config FILE",
		Short: "Open a new log if the old one cannot be continued",
		Long: `new-epoch is for a broker that refuses to start because its database is behind
its checkpoint file: the database was restored from an old copy. It is also for
a broker whose checkpoint file is lost. Use it only if the newest database is
lost for good. The first record of the new log names the last known checkpoint.
The old log stays in the database, and auditors will see that it ended. Stop the
broker first.`,
		Example: `  broker audit new-epoch --config /etc/broker/broker.yaml`,
		Args:    exactly(0, "no arguments but --config FILE"),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(file, a.getenv)
			if err != nil {
				return err
			}
			origin, err := service.NewEpoch(c.Context(), cfg)
			if err != nil {
				return err
			}
			return a.print(map[string]string{"origin": origin}, func(w io.Writer) { fmt.Fprintf(w, "the log %s is open\n", origin) })
		},
	}
	configFlag(c, &file)
	return c
}
