package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/service"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print version, commit and date of this program",
		Example: `  broker version -o json`,
		Args:    exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			b := service.ReadBuild()
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"revision"`
				Date    string `json:"date"`
				Go      string `json:"go"`
			}(b)
			return a.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "broker\t%s\n", v.Version)
				fmt.Fprintf(w, "revision\t%s\n", v.Commit)
				fmt.Fprintf(w, "date\t%s\n", v.Date)
				fmt.Fprintf(w, "go\t%s\n", v.Go)
			})
		},
	}
}
