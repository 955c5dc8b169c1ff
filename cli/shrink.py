"""shrink: free space inside the tables goes back to the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raftkv.cli.output import progress_bar, size_text
from raftkv.cli.session import Session, common_options

if TYPE_CHECKING:
    from raftkv.client.client import AsyncClient
    from raftkv.client.results import Shrunk


@click.command()
@click.option("--cluster", is_flag=True, help="All members, one after the other.")
@common_options
def shrink(session: Session, cluster: bool) -> None:
    """Give free space back to the members' disks.

    For after much was deleted and compacted; never needed in order to go on writing. The member
    serves meanwhile.
    """

    async def work(client: AsyncClient) -> list[tuple[str, Shrunk]]:
        urls = list(client.endpoints)
        if cluster:
            members = await client.cluster.members()
            urls = [url for item in members for url in item.client_urls[:1]] or urls
        done = []
        async with session.client(urls) as wide:
            for url in urls:
                with progress_bar(f"copying the tables of {url}") as progress:
                    done.append((url, await wide.cluster.shrink(url, progress=progress)))
        return done

    done = session.run(work)
    items = [
        {"endpoint": url, "before_bytes": one.before_bytes, "after_bytes": one.after_bytes}
        for url, one in done
    ]
    session.output.one(
        {"members": items},
        lambda: "\n".join(
            f"{url}: {size_text(one.before_bytes)} before, {size_text(one.after_bytes)} now"
            for url, one in done
        ),
    )
